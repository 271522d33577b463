"""Experts, routers and sampling: the decentralized diffusion recipe, without a network."""
