"""A trained model goes on in gentler and smaller steps than a fresh one, unless it is told otherwise."""

import dataclasses

import pytest

from model.config import preset_config
from training.config import TrainConfig
from training.fine_tuning import fine_tuning

GPT2, SMALL = preset_config("gpt2"), preset_config("small", vocab_size=300)


def test_rates_are_a_tenth_and_decay_is_mild() -> None:
    decided = fine_tuning(TrainConfig(), SMALL, 1)
    assert (decided.learning_rate, decided.embedding_learning_rate) == pytest.approx((0.002, 0.0005))
    assert (decided.weight_decay, decided.embedding_weight_decay) == (0.1, 0.0)
    assert fine_tuning(TrainConfig(optimizer="adamw"), SMALL, 1).learning_rate == pytest.approx(0.0001)


def test_adapters_learn_at_a_quarter_of_the_rates() -> None:
    assert fine_tuning(TrainConfig(lora_rank=4), SMALL, 1).learning_rate == pytest.approx(0.005)
    assert fine_tuning(TrainConfig(lora_rank=4, optimizer="adamw"), SMALL, 1).learning_rate == pytest.approx(0.00025)


def test_a_step_takes_2048_tokens_or_one_window_of_every_process() -> None:
    assert fine_tuning(TrainConfig(), SMALL, 1).batch_tokens == 8 * 256
    assert fine_tuning(TrainConfig(), GPT2, 1).batch_tokens == 2 * 1024
    assert fine_tuning(TrainConfig(), SMALL, 3).batch_tokens == 3 * 2 * 256
    assert fine_tuning(TrainConfig(), GPT2, 8).batch_tokens == 8 * 1024


def test_what_was_given_is_kept() -> None:
    rates = TrainConfig(learning_rate=0.5, embedding_learning_rate=0.4, batch_tokens=4096)
    given = dataclasses.replace(rates, weight_decay=0.3, embedding_weight_decay=0.2)
    assert fine_tuning(given, SMALL, 1) == given
