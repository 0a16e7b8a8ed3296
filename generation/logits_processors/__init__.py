"""Logits → logits: what may come next and how probable it is, one rule a class.

`base` says what a processor is and in which order they work. `penalties` make tokens less or more probable, `bans`
forbid them, `truncation` holds temperature and everything that cuts off the improbable. `row_history` is what some of
them remember of each row. `from_config` builds those that the user asked for.
"""
