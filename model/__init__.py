"""Token ids → logits.

Shape letters, here and in every docstring of the project:

    B batch · T positions in this call · S positions attended to · C channels (n_embd) · H query heads
    K key/value heads · D channels per head · F feed-forward width · V vocabulary

Read `gpt` first: it goes from token ids to logits from top to bottom. Each part (`attention`, `feed_forward`,
`normalization`, `positions`) is one small file that ends with the table from which the config chooses.

This room imports neither `data` nor anything above it.
"""
