"""How hard a run is kept from learning its text by heart follows from how often it reads it."""

import pytest

from training.recipe import dropout_for, embedding_decay_for, weight_decay_for


@pytest.mark.parametrize(
    ("epochs", "matrices", "embeddings"), [(0.25, 0.1, 0.1), (1.0, 0.1, 0.4), (2.5, 0.25, 1.0), (50.0, 0.4, 1.6)]
)
def test_the_decay_grows_with_the_epochs_up_to_four(epochs: float, matrices: float, embeddings: float) -> None:
    assert weight_decay_for(epochs) == pytest.approx(matrices)
    assert embedding_decay_for(epochs) == pytest.approx(embeddings)


def test_only_a_small_text_that_is_read_many_times_by_a_large_model_gets_dropout() -> None:
    assert dropout_for(4.1, 4.1, 0.2) == 0.2
    assert dropout_for(4.0, 4.1, 0.2) == dropout_for(4.1, 4.0, 0.2) == 0.0
