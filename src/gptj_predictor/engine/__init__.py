"""Who runs next, where its cache lives, which token comes out. Knows nothing of HTTP."""
