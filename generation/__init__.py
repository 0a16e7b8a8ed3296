"""Logits → text.

The way of one step: the model's logits of the last position (`text_generator`) → the logits processors in the order of
their stages (`logits_processors`) → one token per row (`sampling`) → bytes that become whole characters
(`text_stream`) → until a stopping criterion names its reason (`stopping`).

This room imports `data` and `model`; never `training`.
"""
