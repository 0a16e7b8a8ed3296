"""How hard a run is kept from learning its text by heart follows from how often it reads it."""

import pytest

from training.config import TrainConfig
from training.recipe import dropout_for, embedding_decay_for, weight_decay_for, with_decays


@pytest.mark.parametrize(
    ("epochs", "matrices", "embeddings"), [(0.25, 0.1, 0.1), (1.0, 0.1, 0.4), (2.5, 0.25, 1.0), (50.0, 0.4, 1.6)]
)
def test_the_decay_grows_with_the_epochs_up_to_four(epochs: float, matrices: float, embeddings: float) -> None:
    assert weight_decay_for(epochs) == pytest.approx(matrices)
    assert embedding_decay_for(epochs) == pytest.approx(embeddings)


def test_a_decay_that_was_given_is_kept() -> None:
    assert with_decays(TrainConfig(weight_decay=0.0), 9.0) == TrainConfig(weight_decay=0.0, embedding_weight_decay=1.6)
    given = TrainConfig(weight_decay=0.4, embedding_weight_decay=0.0)
    assert with_decays(TrainConfig(embedding_weight_decay=0.0), 9.0) == given


def test_only_a_small_text_that_is_read_many_times_by_a_large_model_gets_dropout() -> None:
    assert dropout_for(4.1, 4.1, 0.2) == 0.2
    assert dropout_for(4.0, 4.1, 0.2) == dropout_for(4.1, 4.0, 0.2) == 0.0
