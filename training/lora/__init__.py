"""Adapters: a LoRA trained on one published expert, off by default and exact when off."""
