"""Models in and out: the published Paris layout, diffusers folders, and models that others made."""
