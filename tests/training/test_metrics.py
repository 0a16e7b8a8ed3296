"""Metrics survive a full disk and a crash: whole lines only."""

from pathlib import Path
from typing import Any

import pytest

from model import durable_files
from training.metrics import MetricsLog, read_metrics


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, loss=0.1)
    log.write(2, loss=0.2, learning_rate_factor=1.0)
    assert read_metrics(log.path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2, "learning_rate_factor": 1.0}]


def test_a_full_disk_costs_lines_and_one_warning_but_never_half_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, loss=0.1)

    def write_half(file: Any, data: bytes) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(durable_files, "write", write_half)
        log.write(2, loss=0.2)
        log.write(3, loss=0.3)
    log.write(4, loss=0.4)
    assert [line["step"] for line in read_metrics(log.path)] == [1, 4]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in warning
    assert str(log.path) in warning


def test_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
