"""What models are called outside: one file a family (`gpt2`, `llama`) with its config fields and tensor names.

`registry` holds the table of families and says which of our models have a twin outside. To add a family: one file,
one line in the table. No torch in here, so that a refusal costs no time.
"""
