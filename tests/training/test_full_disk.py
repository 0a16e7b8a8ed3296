"""A run on a disk that fills up: found at step 0, survived in mid-run, told loudly at the end."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command_line import EXIT_DISK
from model import durable_files
from model.checkpoint import StorageError, load_checkpoint
from tests.training.conftest import PLAN, BuildTrainer
from training.evaluation import Evaluation
from training.plots import plot_loss
from training.summary import summary_lines
from training.trainer import Trainer


def refuse_writing(monkeypatch: pytest.MonkeyPatch, refused: Callable[[Path], bool]) -> None:
    """The disk has no space left for the files that `refused` says."""
    rename = durable_files.rename

    def rename_if_there_is_space(source: Path, target: Path) -> None:
        if refused(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(durable_files, "rename", rename_if_there_is_space)


def steps_of(trainer: Trainer) -> list[str]:
    return sorted(path.name for path in trainer.run_folder.path.glob("*.pt"))


def test_a_full_disk_is_found_before_the_first_step(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer()
    refuse_writing(monkeypatch, lambda target: True)
    with pytest.raises(StorageError, match=r"cannot save .*step-000000\.pt: No space left on device") as raised:
        trainer.run()
    assert raised.value.exit_code == EXIT_DISK
    assert trainer.done.step == 0


def test_a_disk_that_is_full_for_a_while_costs_a_warning(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = build_trainer(keep_checkpoints=9)
    refuse_writing(monkeypatch, lambda target: target.name in ("step-000002.pt", "step-000004.pt"))
    trainer.run()
    assert steps_of(trainer) == ["best.pt", "step-000000.pt", "step-000006.pt"]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert ["step-000002" in warnings[0], "step-000004" in warnings[1], len(warnings)] == [True, True, 2]
    assert all(line.endswith("training goes on and saves again later") for line in warnings)


def test_best_is_what_could_be_saved(build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 3.0, 4.0, 4.5, 4.2, 4.1])

    def scored(*arguments: Any, **settings: Any) -> Evaluation:
        return Evaluation(loss=next(losses), bits_per_byte=1.0)

    trainer = build_trainer(dataclasses.replace(PLAN, evaluate_every_steps=1))
    monkeypatch.setattr("training.trainer.evaluate", scored)
    refuse_writing(monkeypatch, lambda target: target.name == "best.pt" and trainer.done.step == 2)
    done = trainer.run()
    best = load_checkpoint(trainer.run_folder.best_path)
    assert (done.best_step, done.best_loss) == (3, 4.0)
    assert (best.provenance["best_validation"]["step"], best.provenance["best_validation"]["loss"]) == (3, 4.0)


def test_a_disk_that_stays_full_fails_the_last_save_loudly_and_keeps_what_was_there(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer()
    refuse_writing(monkeypatch, lambda target: target.name not in ("step-000000.pt", "step-000002.pt"))
    with pytest.raises(StorageError, match="No space left on device") as raised:
        trainer.run()
    assert raised.value.exit_code == EXIT_DISK
    assert trainer.done.step == PLAN.n_steps
    assert steps_of(trainer) == ["step-000000.pt", "step-000002.pt"]
    assert trainer.run_folder.newest_checkpoint() is not None


@pytest.mark.parametrize("refused", ["every line of the metrics", "the picture"])
def test_what_a_run_tells_is_worth_less_than_the_run(
    build_trainer: BuildTrainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: str,
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = build_trainer()
    if refused == "the picture":
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
    else:
        monkeypatch.setattr("training.metrics.io", SimpleNamespace(FileIO=refuse))
    done = trainer.run()
    lines = summary_lines(trainer.corpus, trainer.run_folder, done, interpreter="python", prompt="the")
    said = capsys.readouterr().err + "\n".join(lines)
    assert "No space left on device" in said or "No such file" in said
    assert "step-000006.pt" in steps_of(trainer)
    assert lines[-1].startswith("generate    python generate.py --checkpoint")


def test_a_run_without_metrics_has_an_empty_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "validation_loss": 2.0}\n')
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", best_step=3)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
