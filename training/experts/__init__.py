"""Training of one expert: nets, batches, precision, memory, checkpoints."""
