"""Our engine, transformers' ``generate`` and CTranslate2, measured in turns on the same weights."""
