"""The folder of a run: one writer, the newest good checkpoint, and never one good checkpoint too few."""

import contextlib
import errno
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import EXIT_CHECKPOINT, EXIT_DISK, EXIT_RUN_IN_USE, EXIT_USAGE, UserError
from model import durable_files
from model.checkpoint import CheckpointError, StorageError, load_checkpoint, verify_checkpoint
from model.checkpoint_choice import newest_run_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from training.run_lock import RunInUseError
from training.run_state import RunFolder

CONFIG = ModelConfig(vocab_size=5, context_length=4, n_layer=1, n_head=1, n_embd=4)


@functools.cache
def model_values(step: int) -> dict[str, Any]:
    torch.manual_seed(step)
    return {
        "model_config": CONFIG,
        "state_dict": GPT(CONFIG).state_dict(),
        "tokenizer": {"kind": "char", "version": 1, "characters": "abcd"},
        "provenance": {"step": step},
    }


def save_steps(run: RunFolder, *steps: int, keep: int = 2) -> None:
    for step in steps:
        run.save_step(step, **model_values(step), training_state={"step": step}, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".pt")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.open(tmp_path / "run", resume=False, overwrite=False) as folder:
        yield folder


@contextmanager
def reopened(run: RunFolder, *, resume: bool = True, overwrite: bool = False) -> Iterator[RunFolder]:
    """The run folder as a later process finds it."""
    run.close()
    with RunFolder.open(run.path, resume=resume, overwrite=overwrite) as again:
        yield again


def test_a_new_run_has_nothing_to_resume(run: RunFolder) -> None:
    assert run.newest_checkpoint() is None


def test_the_newest_checkpoint_comes_back_with_its_training_state(run: RunFolder) -> None:
    save_steps(run, 1, 2)
    with reopened(run) as again:
        newest = again.newest_checkpoint()
    assert newest is not None
    assert newest.training_state == {"step": 2}
    expected = model_values(2)["state_dict"]
    assert all(torch.equal(newest.state_dict[name], weight) for name, weight in expected.items())


def test_only_the_newest_are_kept(run: RunFolder) -> None:
    save_steps(run, 1, 2, 3, 10, 200)
    assert names(run.path) == ["step-000010.pt", "step-000200.pt"]


def test_modification_times_decide_nothing(run: RunFolder) -> None:
    save_steps(run, 1, 2, 3, keep=3)
    for age, name in enumerate(names(run.path)):
        os.utime(run.path / name, (0, 1000 - age))
    save_steps(run, 4, keep=2)
    assert names(run.path) == ["step-000003.pt", "step-000004.pt"]


def test_a_damaged_newest_costs_a_warning_and_the_older_one_is_taken(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(run, 1, 2)
    damage(run.path / "step-000002.pt")
    with reopened(run) as again:
        newest = again.newest_checkpoint()
    assert newest is not None
    assert newest.provenance["step"] == 1
    (warning,) = capsys.readouterr().err.splitlines()
    assert "step-000002.pt is damaged" in warning


def test_a_newest_that_the_disk_cannot_read_costs_a_warning_and_the_older_one_is_taken(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(run, 1, 2)
    read_into, reads = durable_files.read_into, []

    def fail_at_first(file: Any, buffer: memoryview) -> int:
        reads.append(file)
        if file is reads[0] and len(reads) > 1:
            raise OSError(5, "Input/output error")
        return read_into(file, buffer)

    with reopened(run) as again:
        monkeypatch.setattr(durable_files, "read_into", fail_at_first)
        newest = again.newest_checkpoint()
    assert newest is not None
    assert newest.provenance["step"] == 1
    assert "step-000002.pt: Input/output error" in capsys.readouterr().err


def test_a_damaged_one_does_not_count_among_the_kept(run: RunFolder) -> None:
    save_steps(run, 1, 2)
    damage(run.path / "step-000002.pt")
    with reopened(run) as again:
        save_steps(again, 3)
    assert "step-000001.pt" in names(run.path)
    assert "step-000003.pt" in names(run.path)


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(run: RunFolder) -> None:
    save_steps(run, 1, 2)
    for name in names(run.path):
        damage(run.path / name)
    with (
        reopened(run) as again,
        pytest.raises(CheckpointError, match=r"2 found, none intact.*--overwrite") as raised,
    ):
        again.newest_checkpoint()
    assert raised.value.exit_code == EXIT_CHECKPOINT


def test_best_is_no_starting_point_for_training(run: RunFolder) -> None:
    run.save_best(**model_values(1))
    assert load_checkpoint(run.best_path).training_state is None
    with (
        reopened(run) as again,
        pytest.raises(UserError, match=r"holds best\.pt, but no step checkpoint.*--overwrite.*--init") as raised,
    ):
        again.newest_checkpoint()
    assert raised.value.exit_code == EXIT_USAGE


def test_a_step_without_training_state_is_passed_over(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    save_steps(run, 1)
    run.save_best(**model_values(2))
    (run.path / "step-000002.pt").write_bytes(run.best_path.read_bytes())
    with reopened(run) as again:
        newest = again.newest_checkpoint()
    assert newest is not None
    assert newest.training_state == {"step": 1}
    assert "step-000002.pt holds no training state" in capsys.readouterr().err


def test_an_existing_run_needs_resume_or_overwrite(run: RunFolder) -> None:
    save_steps(run, 1)
    with pytest.raises(UserError, match=r"--resume.*--overwrite") as raised, reopened(run, resume=False):
        pass
    assert raised.value.exit_code == EXIT_USAGE
    with pytest.raises(UserError, match="give one of them"):
        RunFolder.open(run.path, resume=True, overwrite=True)
    with reopened(run):
        pass  # the refusal left no lock behind


def test_an_overwritten_run_goes_when_the_first_new_checkpoint_is_safe(run: RunFolder) -> None:
    save_steps(run, 5, 6)
    run.save_best(**model_values(6))
    run.metrics_path.write_text('{"step": 6}\n')
    run.samples_path.write_text("## Step 6\n")
    before = {path.name for path in run.path.iterdir()}
    assert before >= {"best.pt", "step-000005.pt", "step-000006.pt", "metrics.jsonl", "samples.md"}
    with reopened(run, resume=False, overwrite=True):
        pass  # interrupted before the first step
    with reopened(run, resume=False, overwrite=True) as again:
        assert {path.name for path in run.path.iterdir()} == before
        assert again.newest_checkpoint() is None
        save_steps(again, 0)
        assert names(run.path) == ["step-000000.pt"]
        assert not run.metrics_path.exists()
        assert not run.samples_path.exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_is_the_old_or_the_new_one_wherever_replacing_it_is_killed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    save_steps(run, 0, 5, 6, keep=3)
    run.save_best(**model_values(6))
    run.metrics_path.write_text('{"step": 6}\n')
    run.close()
    seen, is_over = [], False
    for number in itertools.count(1):
        copied = run.path.with_name(f"copy-{number}")
        shutil.copytree(run.path, copied)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            stop_at(patch, number, when)
            with RunFolder.open(copied, resume=False, overwrite=True) as again:
                again.save_step(0, **model_values(40), training_state={"step": 40}, keep=2)
            is_over = True
        with RunFolder.open(copied, resume=True, overwrite=False) as again:
            newest = again.newest_checkpoint()
        assert newest is not None
        seen.append(newest.provenance["step"])
        expected = ["best.pt", "step-000000.pt", "step-000005.pt", "step-000006.pt"]
        assert names(copied) == (expected if seen[-1] == 6 else ["step-000000.pt"])
        assert (copied / "metrics.jsonl").exists() == (seen[-1] == 6)
        if is_over:
            break
    # The first of them gives the new checkpoint its name.
    assert seen == ([6, *[40] * (len(seen) - 1)] if when == "before" else [40] * len(seen))


def stop_at(patch: pytest.MonkeyPatch, number: int, when: str) -> None:
    """The process is gone before or after renaming, deleting or syncing a name for the n-th time."""
    calls = itertools.count(1)

    def stopping(operation: Callable[..., None]) -> Callable[..., None]:
        def stopped(*arguments: Path) -> None:
            is_last = next(calls) == number
            if is_last and when == "before":
                raise KeyboardInterrupt
            operation(*arguments)
            if is_last:
                raise KeyboardInterrupt

        return stopped

    for name in ("rename", "unlink", "sync_folder"):
        patch.setattr(durable_files, name, stopping(getattr(durable_files, name)))


def test_old_files_that_cannot_go_stop_a_run_that_would_replace_them(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(run, 5, 6)
    unlink = durable_files.unlink

    def refusing(path: Path) -> None:
        if path.name == "step-000005.pt":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path)

    with reopened(run, resume=False, overwrite=True) as again:
        monkeypatch.setattr(durable_files, "unlink", refusing)
        with pytest.raises(StorageError, match=r"cannot replace the run in .*: Operation not permitted"):
            save_steps(again, 0)
    monkeypatch.undo()
    with reopened(run) as again:
        assert names(run.path) == ["step-000000.pt"]


def test_a_new_run_that_is_damaged_does_not_replace_the_old(run: RunFolder) -> None:
    save_steps(run, 5, 6)
    (run.path / "new-step-000000.pt").write_bytes((run.path / "step-000005.pt").read_bytes())
    damage(run.path / "new-step-000000.pt")
    with reopened(run):
        assert names(run.path) == ["step-000005.pt", "step-000006.pt"]


def test_a_folder_that_nothing_was_written_to_disappears_again(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", resume=False, overwrite=False):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


def test_many_processes_that_write_nothing_never_meet_in_one_folder(tmp_path: Path) -> None:
    """Each holder marks the folder while it has it; one that finds the mark of another was not alone."""
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(60):
                    with (
                        contextlib.suppress(RunInUseError),
                        RunFolder.open(tmp_path / "run", resume=True, overwrite=False) as run,
                    ):
                        (run.path / "mark").touch(exist_ok=False)
                        (run.path / "mark").unlink()
                status = 0
            except BaseException as error:  # noqa: BLE001 - a forked child must not run on into pytest
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_killed_save_are_removed(run: RunFolder) -> None:
    (run.path / ".123-abcd.tmp").write_bytes(b"half a checkpoint")
    (run.path / "notes.tmp").write_bytes(b"not ours")
    with reopened(run):
        pass
    assert not (run.path / ".123-abcd.tmp").exists()
    assert (run.path / "notes.tmp").exists()


def test_metrics_are_cut_back_to_the_resumed_step(run: RunFolder) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (1, 2, 3)]
    run.metrics_path.write_text("".join(lines) + '{"step": 2, "lo')
    run.truncate_logs(2, 0)
    assert run.metrics_path.read_text() == "".join(lines[:2])


def test_an_evaluation_that_the_checkpoint_does_not_know_of_is_cut_off(run: RunFolder) -> None:
    training, validation = '{"step": 2, "loss": 3.5}\n', '{"step": 2, "validation_loss": 3.0}\n'
    run.metrics_path.write_text(training + validation)
    run.samples_path.write_text("## Step 1\n\nonce\n\n## Step 2\n\nupon ## Step 0\n\n")
    run.truncate_logs(2, 2)
    assert run.metrics_path.read_text() == training + validation
    assert run.samples_path.read_text().endswith("upon ## Step 0\n\n")
    run.truncate_logs(2, 1)
    assert run.metrics_path.read_text() == training
    assert run.samples_path.read_text() == "## Step 1\n\nonce\n\n"


# ---- one writer --------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_is_first(run: RunFolder) -> None:
    with pytest.raises(RunInUseError, match=f"process {os.getpid()} on {socket.gethostname()}") as raised:
        RunFolder.open(run.path, resume=True, overwrite=False)
    assert raised.value.exit_code == EXIT_RUN_IN_USE


def test_the_lock_of_a_killed_process_is_taken_over_even_if_its_worker_lives_on(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        with RunFolder.open(tmp_path, resume=False, overwrite=False):
            worker = os.fork()
            if worker:
                os.write(writable, str(worker).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(readable, 100))
    try:
        with pytest.raises(RunInUseError):
            RunFolder.open(tmp_path, resume=False, overwrite=False)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        RunFolder.open(tmp_path, resume=False, overwrite=False).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(readable)
        os.close(writable)


def nothing(descriptor: int) -> None:
    """In place of os.fsync."""


def race(folder: Path, n_processes: int) -> list[str]:
    """Processes open one run folder at the same moment; returns what each says: `won`, or whom it lost to."""
    start_readable, start_writable = os.pipe()
    said_readable, said_writable = os.pipe()
    done_readable, done_writable = os.pipe()
    children = []
    for _ in range(n_processes):
        child = os.fork()
        if child == 0:
            os.close(start_writable)
            os.close(done_writable)
            os.read(start_readable, 1)  # returns when the parent closes its end
            try:
                with RunFolder.open(folder, resume=True, overwrite=False):
                    os.write(said_writable, f"won {os.getpid()}\n".encode())
                    os.read(done_readable, 1)
            except RunInUseError as error:
                os.write(said_writable, f"{error}\n".encode())
            finally:
                os._exit(0)
        children.append(child)
    for end in (start_readable, start_writable, said_writable, done_readable):
        os.close(end)
    said = b""
    while said.count(b"\n") < n_processes:
        part = os.read(said_readable, 2**16)
        if not part:
            break
        said += part
    os.close(done_writable)
    os.close(said_readable)
    for child in children:
        os.waitpid(child, 0)
    return said.decode().splitlines()


def test_of_fifty_processes_at_once_exactly_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    for attempt in range(2):
        if attempt == 1:  # over the lock file of a process that was killed
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / ".lock").write_text('{"pid": 1, "host": "gone", "since": "long ago"}')
        said = race(tmp_path / "run", 50)
        winners = [words.split()[1] for words in said if words.startswith("won")]
        assert len(said) == 50, attempt
        assert len(winners) == 1
        losers = [words for words in said if not words.startswith("won")]
        assert all(f"in use by process {winners[0]} on {socket.gethostname()}" in words for words in losers)


@pytest.mark.slow
def test_of_fifty_processes_exactly_one_wins_in_a_hundred_races(tmp_path: Path) -> None:
    for attempt in range(100):
        said = race(tmp_path / "run", 50)
        assert sum(words.startswith("won") for words in said) == 1, attempt


def test_who_reads_while_a_run_saves_never_sees_half_a_file(tmp_path: Path) -> None:
    run_path = tmp_path / "runs" / "a"
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writable)
        os.set_blocking(readable, False)
        status = 1
        # The reader is in the same system: it needs no disk to see a rename.
        pytest.MonkeyPatch().setattr(os, "fsync", nothing)
        try:
            with RunFolder.open(run_path, resume=False, overwrite=False) as run:
                step = 0
                while True:
                    step += 1
                    run.save_best(**model_values(step % 7))
                    run.save_step(step, **model_values(step % 7), training_state={}, keep=1)
                    with contextlib.suppress(BlockingIOError):
                        if os.read(readable, 1) == b"":  # the reader has closed its end
                            status = 0 if step > 10 else 3
                            break
        finally:
            os._exit(status)
    os.close(readable)
    best = run_path / "best.pt"
    while not best.exists():
        time.sleep(0.01)
    seen = set()
    for _ in range(1000):
        loaded = load_checkpoint(best)
        step = loaded.provenance["step"]
        seen.add(step)
        assert torch.equal(loaded.state_dict["head.weight"], model_values(step)["state_dict"]["head.weight"])
    for _ in range(50):
        assert newest_run_checkpoint(tmp_path / "runs") == best
    os.close(writable)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(seen) == 7


# ---- the disk refuses --------------------------------------------------------------------------------------------


def test_too_little_space_is_found_before_anything_is_written(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(run, 1)
    monkeypatch.setattr(durable_files, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(durable_files, "create", None)
    with pytest.raises(StorageError, match=r"step-000002.pt: No space left on device: it needs .* MB") as raised:
        save_steps(run, 2)
    assert raised.value.exit_code == EXIT_DISK
    assert names(run.path) == ["step-000001.pt"]


def test_space_for_one_more_but_not_for_all_is_a_warning(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(durable_files, "free_bytes", lambda folder: 20_000)
    save_steps(run, 0, 1)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "saving may fail later" in warning


def test_the_name_of_a_new_folder_is_synced_before_anything_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(
        durable_files, "sync_folder", lambda folder: synced.append((folder, durable_files.list_folder(folder)))
    )
    durable_files.make_folder(tmp_path / "checkpoints" / "run")
    assert synced == [(tmp_path, ["checkpoints"]), (tmp_path / "checkpoints", ["run"])]


def test_a_run_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match="cannot open run folder"):
            RunFolder.open(path, resume=False, overwrite=False)


def test_a_checkpoint_that_cannot_be_read_back_never_replaces_a_good_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_best(**model_values(1))
    good = verify_checkpoint(run.best_path)
    write = durable_files.write

    def write_wrongly(file: Any, data: bytes) -> None:
        write(file, bytes([data[0] ^ 1]) + bytes(data[1:]))

    monkeypatch.setattr(durable_files, "write", write_wrongly)
    with pytest.raises(StorageError, match="what was read back is not what was written"):
        run.save_best(**model_values(2))
    assert verify_checkpoint(run.best_path) == good
