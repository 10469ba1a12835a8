"""Wire formats in, engine calls out. Knows nothing of tensors."""
