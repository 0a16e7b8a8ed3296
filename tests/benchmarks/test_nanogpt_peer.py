"""The peer gets the same text and is scored in full; tested with stand-ins, without a checkout."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.nanogpt import (
    CharacterData,
    Checkout,
    TrainingRun,
    bits_per_byte,
    open_checkout,
    steps_for,
    train_for,
    write_character_data,
)
from command_line import UserError


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "config").mkdir()
    for name in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
        (tmp_path / name).touch()
    return Checkout(tmp_path)


class CountingModel:
    """Gives the next character of "0 1 2 … V−1 0 1 …" half of the mass, and remembers which targets it was asked."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        self.config = SimpleNamespace(block_size=block_size)
        self.vocab_size = vocab_size

    def __call__(self, token_ids: Tensor, target_ids: Tensor) -> tuple[Tensor, None]:
        others = math.log(0.5 / (self.vocab_size - 1))
        logits = torch.full((*token_ids.shape, self.vocab_size), others)
        following = ((token_ids + 1) % self.vocab_size).unsqueeze(-1)
        return logits.scatter(-1, following, math.log(0.5)), None


def test_documents_become_ids_with_a_separator_after_each(checkout: Checkout) -> None:
    data = write_character_data(checkout, "tales", ["ab", "b"], ["é", "ba"])
    folder = checkout.path / "data" / "tales"
    assert np.fromfile(folder / "train.bin", np.uint16).tolist() == [1, 2, 0, 2, 0]  # separator, a, b, é
    assert np.fromfile(folder / "val.bin", np.uint16).tolist() == [3, 0, 2, 1, 0]
    assert data.validation.tolist() == [0, 3, 0, 2, 1, 0]
    assert (data.vocab_size, data.validation_bytes) == (4, 4)


@pytest.mark.parametrize("length", [2, 5, 8, 9, 16, 17, 30])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_every_character_is_scored_exactly_once(length: int, stride: int) -> None:
    stream = np.arange(length, dtype=np.int64) % 5
    data = CharacterData(vocab_size=5, validation=stream, validation_bytes=7)
    scored = bits_per_byte(CountingModel(5, block_size=8), data, stride)
    assert scored == pytest.approx((math.log2(5) + (length - 1) * 1.0) / 7, rel=1e-6)


def test_overlapping_windows_score_with_the_longest_context_seen() -> None:
    class ContextModel(CountingModel):
        """Knows the next character only with at least three characters before it."""

        def __call__(self, token_ids: Tensor, target_ids: Tensor) -> tuple[Tensor, None]:
            logits, _ = super().__call__(token_ids, target_ids)
            logits[:, :2] = 0
            return logits, None

    data = CharacterData(vocab_size=4, validation=np.arange(33, dtype=np.int64) % 4, validation_bytes=1)
    scored = bits_per_byte(ContextModel(4, block_size=8), data, stride=4)
    assert scored == pytest.approx(2 + 2 * 2 + 30 * 1.0)  # only the very first two lack context


def test_the_time_beside_the_steps_is_kept_out_of_a_step() -> None:
    trial = TrainingRun(4, wall_seconds=10.0, step_seconds=[1.0, 1.0, 1.0, 2.0], checkpoint=Path("ckpt.pt"))
    assert steps_for(106.0, trial) == 100


class RestlessMachine:
    """Stands in for `train`: steps take half a second while it is busy (at first) and a tenth later."""

    def __init__(self, busy_runs: int) -> None:
        self.busy_runs = busy_runs
        self.runs: list[TrainingRun] = []

    def __call__(self, checkout: Checkout, dataset: str, steps: int) -> TrainingRun:
        step = 0.5 if len(self.runs) < self.busy_runs else 0.1
        self.runs.append(TrainingRun(steps, 2 + step * steps, [step] * steps, Path("ckpt.pt")))
        return self.runs[-1]


def test_the_peer_never_gets_less_time_because_its_trial_was_slow(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = RestlessMachine(busy_runs=1)
    monkeypatch.setattr("benchmarks.nanogpt.train", machine)
    run = train_for(checkout, "tales", 102.0)
    assert [run.steps for run in machine.runs] == [120, 200, 1000]
    assert run.wall_seconds == pytest.approx(102.0)


def test_a_run_that_stays_short_is_refused(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    always_short = TrainingRun(10, 3.0, [0.1] * 10, Path("ckpt.pt"))
    monkeypatch.setattr("benchmarks.nanogpt.train", lambda *_: always_short)
    with pytest.raises(UserError, match="3 s in place of 100 s"):
        train_for(checkout, "tales", 100.0)


def test_a_folder_that_is_no_checkout_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train\.py; run: git clone"):
        Checkout(tmp_path)
    with pytest.raises(UserError, match="add --nanogpt"):
        open_checkout(None)
