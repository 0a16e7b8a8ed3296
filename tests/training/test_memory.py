"""What is free is what the tightest limit leaves; running out is one line with numbers and exit code 6."""

import os
import sys
from pathlib import Path

import pytest
import torch

from command_line import EXIT_OUT_OF_MEMORY
from tests.training.conftest import BuildTrainer
from training import memory
from training.memory import TooLittleMemoryError, free_memory, shortage_explained

CPU = torch.device("cpu")


@pytest.mark.parametrize(("limit", "expected"), [("1000000\n", 400_000), ("500000\n", 0), ("max\n", None)])
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    unlimited = free_memory(CPU)
    (tmp_path / "limit").write_text(limit)
    (tmp_path / "used").write_text("600000\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", ((str(tmp_path / "limit"), str(tmp_path / "used")),))
    if expected is None:
        assert free_memory(CPU) == pytest.approx(unlimited, rel=0.3)  # other programs come and go
    else:
        assert free_memory(CPU) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_with_a_limit_has_what_it_leaves_and_running_into_it_is_explained() -> None:
    import resource

    child = os.fork()
    if child == 0:
        status = 1
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, used + 200_000_000))
            assert 100_000_000 < free_memory(CPU) <= 200_000_000
            with pytest.raises(TooLittleMemoryError) as raised, shortage_explained(CPU, 8):
                torch.empty(300_000_000)
            words = str(raised.value)
            assert raised.value.exit_code == EXIT_OUT_OF_MEMORY
            assert words.startswith("cpu ran out of memory with 8 windows at once (tried to allocate 1200000000 bytes,")
            assert words.endswith("checkpoints are untouched; close other programs, or try --micro-batch-size 4")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_one_window_too_many_asks_for_a_smaller_preset(error: Exception) -> None:
    with pytest.raises(TooLittleMemoryError, match="try a smaller --preset"), shortage_explained(CPU, 1):
        raise error


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes") as raised, shortage_explained(CPU, 1):
        raise RuntimeError("shapes do not fit")
    assert not isinstance(raised.value, TooLittleMemoryError)


def test_a_run_that_runs_out_of_memory_keeps_its_checkpoints(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer()
    step = trainer._train_step

    def step_until_memory_ends() -> float:
        if trainer.done.step == 3:
            torch.empty(10**14)
        return step()

    monkeypatch.setattr(trainer, "_train_step", step_until_memory_ends)
    with pytest.raises(TooLittleMemoryError), shortage_explained(CPU, 2):
        trainer.run()
    checkpoint = trainer.run_folder.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.provenance["step"] == 2
