"""Logits → better weights. Read `trainer` first; every other file is one thing that it uses.

This room may import `data`, `model` and `generation` (it shows samples); none of them imports it.
"""
