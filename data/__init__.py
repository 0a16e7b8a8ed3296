"""Text → token ids, and back.

The way of a line of text: `sources` yields documents (str) → a tokenizer (`tokenizers/`) turns each into token ids →
`prepare` writes them once into memory-mapped `shards`, split into training and validation → `batches` cuts the shards
into windows, in an order that depends on nothing but the seed and the step.

This room imports neither `model` nor anything above it.
"""
