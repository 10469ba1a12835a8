"""Which token comes out: logits and parameters in, tokens out. Knows nothing of sequences."""
