"""Zero-knowledge proofs about LoRA adapters: bytes and paths in, values out."""
