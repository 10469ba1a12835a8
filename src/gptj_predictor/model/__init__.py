"""The GPT-J network: token ids and a paged KV cache in, logits out."""
