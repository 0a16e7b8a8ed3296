"""Tokenizers: one protocol (`base`), one file a kind; `registry` chooses one by name or rebuilds one from its state."""
