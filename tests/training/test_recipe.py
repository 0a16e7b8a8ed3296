"""How hard a run is kept from learning its text by heart follows from how often it reads it."""

from training.recipe import dropout_for, weight_decay_for


def test_only_a_text_that_is_read_many_times_is_kept_from_being_learnt_by_heart() -> None:
    assert (weight_decay_for(4.0), dropout_for(4.0, 0.2)) == (0.1, 0.0)
    assert (weight_decay_for(4.1), dropout_for(4.1, 0.2)) == (1.0, 0.2)
