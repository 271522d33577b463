"""Which cluster is a noisy latent or a caption of?  Routers, their calibration and training."""
