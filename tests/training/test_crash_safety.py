"""A save that is interrupted at any file operation, in any way, loses nothing that was announced.

Every file operation of a save goes through `model.durable_files`. `FaultyDisk` takes their place: it counts them and
makes a chosen one fail. What is not proved here: that a real disk does what `fsync` promises.
"""

import errno
import functools
import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import UserError
from model import checkpoint as checkpoints
from model import checkpoint_choice, durable_files
from model.checkpoint import Checkpoint, StorageError, load_checkpoint, verify_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from training import run_state
from training.run_state import RunFolder

CONFIG = ModelConfig(vocab_size=5, context_length=4, n_layer=1, n_head=1, n_embd=4, bias=False)
OPERATIONS = ("create", "write", "sync", "rename", "unlink", "sync_folder", "open_to_read", "read_into", "list_folder")
OLD, NEW = 2, 3
METRICS = (b'{"step": 2}\n{"step": 3}\n', b'{"step": 2}\n')
"""The log before it is cut back to step OLD, and after that."""


Fault = Callable[[int, str, Callable[..., Any], tuple[Any, ...]], Any]
"""(number, name, operation, arguments) of a file operation → its result."""


class Crash(BaseException):
    """The process is gone: nothing after this runs."""


@dataclass
class FaultyDisk:
    """Stands before the operations of `durable_files` and decides what becomes of each."""

    fault: Fault
    log: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in OPERATIONS:
            operation = getattr(durable_files, name)
            if operation is not nothing:  # what a mutant leaves out does not happen
                monkeypatch.setattr(durable_files, name, self._wrap(name, operation))

    def _wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            number = len(self.log)
            self.log.append((name, arguments))
            return self.fault(number, name, operation, arguments)

        return wrapped


def no_fault(number: int, name: str, operation: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return operation(*arguments)


def crash_at(chosen: int, when: str) -> Fault:
    """Crash before or after the chosen operation, or when a part of it (`torn 0`, `torn 1`, …) has been done."""

    def fault(number: int, name: str, operation: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number < chosen:
            return operation(*arguments)
        if number == chosen and when == "after":
            result = operation(*arguments)
            if hasattr(result, "close"):
                result.close()
        if number == chosen and when.startswith("torn") and name == "write":
            file, data = arguments
            length = {"torn 0": 0, "torn 1": 1, "torn half": len(data) // 2, "torn last": len(data) - 1}[when]
            operation(file, data[:length])
        raise Crash

    return fault


def fail_at(chosen: int, error_number: int, *, for_good: bool) -> Fault:
    """The chosen operation fails with an error of the system, once or from then on."""

    def fault(number: int, name: str, operation: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number == chosen or (for_good and number > chosen):
            raise OSError(error_number, os.strerror(error_number))
        return operation(*arguments)

    return fault


# ---- the run that is interrupted, and what must hold after it ----------------------------------------------------


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on a real disk: `ModelledDisk` knows what was asked to be synced."""
    monkeypatch.setattr(os, "fsync", nothing)


def nothing(*arguments: Any, **settings: Any) -> None:
    """In place of an operation that is left out."""


@functools.cache
def values(step: int) -> dict[str, Any]:
    torch.manual_seed(step)
    return {
        "model_config": CONFIG,
        "state_dict": GPT(CONFIG).state_dict(),
        "tokenizer": {"kind": "char", "version": 1, "characters": "abcd"},
        "provenance": {"step": step},
    }


def save_and_announce(folder: RunFolder, step: int, announce: Callable[[str], None]) -> None:
    """What a trainer does after an evaluation: the best weights, then everything."""
    folder.save_best(**values(step))
    announce(f"best {step}")
    folder.save_step(step, **values(step), training_state={"step": step}, keep=1)
    announce(f"step {step}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder after step OLD."""
    with RunFolder.open(tmp_path / "run", resume=False, overwrite=False) as folder:
        save_and_announce(folder, OLD, nothing)
        folder.metrics_path.write_bytes(METRICS[0])
    return tmp_path / "run"


def assert_holds_its_step(loaded: Checkpoint) -> None:
    """The checkpoint holds exactly what was saved at the step that it names."""
    for name, weight in values(loaded.provenance["step"])["state_dict"].items():
        assert torch.equal(loaded.state_dict[name], weight)


def assert_nothing_lost(run: Path, announced: list[str], *, torn_files_allowed: bool = False) -> None:
    """The invariants: what was announced is there, and what has a checkpoint's name is one."""
    for path in run.glob("*.pt"):
        if not torn_files_allowed:
            verify_checkpoint(path)
    with RunFolder.open(run, resume=True, overwrite=False) as folder:
        newest, best = folder.newest_checkpoint(), load_checkpoint(folder.best_path)
        assert newest is not None
        for loaded, kind in ((newest, "step"), (best, "best")):
            step = loaded.provenance["step"]
            assert step in (OLD, NEW)
            assert step == NEW or f"{kind} {NEW}" not in announced
            assert_holds_its_step(loaded)
        assert newest.training_state == {"step": newest.provenance["step"]}
        assert not list(run.glob(".*.tmp"))


def assert_goes_on(run: Path) -> None:
    """The run can be continued, and ends with the one step checkpoint that it keeps."""
    with RunFolder.open(run, resume=True, overwrite=False) as folder:
        folder.newest_checkpoint()
        save_and_announce(folder, NEW, nothing)
    assert [path.name for path in sorted(run.glob("*.pt"))] == ["best.pt", f"step-{NEW:06d}.pt"]
    assert_holds_its_step(load_checkpoint(run / f"step-{NEW:06d}.pt"))


def run_interrupted(run: Path, disk: FaultyDisk) -> list[str]:
    """Save step NEW on a faulty disk; returns what was announced before the crash or the error."""
    announced: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = RunFolder.open(run, resume=True, overwrite=False)
        disk.install(monkeypatch)
        try:
            folder.truncate_logs(OLD, OLD)
            save_and_announce(folder, NEW, announced.append)
        except (Crash, StorageError) as error:
            announced.append(str(error))
        finally:
            monkeypatch.undo()
            folder.close()
    return announced


@contextmanager
def copy_of(run: Path) -> Iterator[Path]:
    """A copy of a run folder to damage."""
    copied = run.with_name("copy")
    shutil.copytree(run, copied)
    try:
        yield copied
    finally:
        shutil.rmtree(copied)


def operations_of_a_save(run: Path) -> list[str]:
    """The names of the operations, in order, when nothing fails."""
    disk = FaultyDisk(no_fault)
    with copy_of(run) as copied:
        run_interrupted(copied, disk)
    return [name for name, _ in disk.log]


# ---- crashes -----------------------------------------------------------------------------------------------------


def assert_survives_every_crash(run: Path) -> int:
    """Crash before, after and within every operation; returns how many crashes that were."""
    n_crashes = 0
    for number, name in enumerate(operations_of_a_save(run)):
        moments = ["before", "after"]
        moments += ["torn 0", "torn 1", "torn half", "torn last"] if name == "write" else []
        for moment in moments:
            with copy_of(run) as copied:
                announced = run_interrupted(copied, FaultyDisk(crash_at(number, moment)))
                assert_nothing_lost(copied, announced)
                assert (copied / "metrics.jsonl").read_bytes() in METRICS
                assert_goes_on(copied)
            n_crashes += 1
    return n_crashes


def test_a_crash_at_any_file_operation_loses_nothing(run: Path) -> None:
    operations = operations_of_a_save(run)
    assert {"create", "write", "sync", "rename", "sync_folder", "read_into", "unlink"} <= set(operations)
    assert assert_survives_every_crash(run) >= 2 * len(operations)


def save_in_killed_process(run: Path, fault: Fault) -> list[str]:
    """Save step NEW in a child that dies in place of every Crash; returns what it announced."""

    def killed(*details: Any) -> Any:
        try:
            return fault(*details)
        except Crash:
            os._exit(137)

    readable, writable = os.pipe()

    def announce(words: str) -> None:
        os.write(writable, f"{words}\n".encode())

    child = os.fork()
    if child == 0:
        try:
            folder = RunFolder.open(run, resume=True, overwrite=False)
            with pytest.MonkeyPatch.context() as monkeypatch:
                FaultyDisk(killed).install(monkeypatch)
                folder.truncate_logs(OLD, OLD)
                save_and_announce(folder, NEW, announce)
        finally:
            os._exit(1)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        announced = pipe.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    return announced


def test_a_process_killed_at_any_file_operation_loses_nothing(run: Path) -> None:
    """The same with real processes, which cannot clean up anything."""
    for number, name in enumerate(operations_of_a_save(run)):
        if name not in ("read_into", "list_folder"):  # reading changes nothing on the disk
            for moment in ("before", "after", "torn half"):
                with copy_of(run) as copied:
                    announced = save_in_killed_process(copied, crash_at(number, moment))
                    assert_nothing_lost(copied, announced)


# ---- the disk reports errors -------------------------------------------------------------------------------------

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG)


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("for_good", [False, True])
def test_a_disk_error_at_any_operation_keeps_the_old_checkpoints_and_names_the_cause(
    run: Path, error_number: int, for_good: bool
) -> None:
    for number, name in enumerate(operations_of_a_save(run)):
        with copy_of(run) as copied:
            announced = run_interrupted(copied, FaultyDisk(fail_at(number, error_number, for_good=for_good)))
            message = announced[-1]
            if name in ("create", "write", "sync", "rename", "sync_folder"):
                assert os.strerror(error_number) in message
            if message != f"step {NEW}":
                assert str(copied) in message
                assert "\n" not in message
            assert_nothing_lost(copied, announced)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_one_clear_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = durable_files.create

    def create_on_full_disk(path: Path) -> Any:
        create(path).close()
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(durable_files, "create", create_on_full_disk)
    with (
        RunFolder.open(run, resume=True, overwrite=False) as folder,
        pytest.raises(StorageError, match=r"cannot save .*best\.pt: No space left on device; free some space"),
    ):
        save_and_announce(folder, NEW, nothing)
    monkeypatch.undo()
    assert_nothing_lost(run, [])


def test_a_write_that_fails_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    def fill_the_disk(file: io.FileIO) -> None:
        durable_files.write(file, b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError):
        durable_files.write_atomically(tmp_path / "best.pt", fill_the_disk)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_small_disk_fills_up_without_losing_anything(tmp_path: Path) -> None:
    """A real file system of 100 KB, which several checkpoints do not fit into."""
    program = """
import sys; from pathlib import Path; sys.path.insert(0, "."); sys.path.insert(0, "tests/training")
import test_crash_safety as tests; from model.checkpoint import StorageError, load_checkpoint
run, saved = Path(sys.argv[1]) / "run", []
with tests.RunFolder.open(run, resume=False, overwrite=False) as folder:
    for step in range(100):
        try:
            folder.save_step(step, **tests.values(step % 5), training_state={"step": step}, keep=99)
            saved.append(step)
        except StorageError as error:
            print(error)
            break
assert saved and len(saved) < 100
for step in saved:
    tests.assert_holds_its_step(load_checkpoint(tests.checkpoint_choice.step_path(run, step)))
"""
    mount = 'mount -t tmpfs -o size=100k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, program]
    project = Path(checkpoints.__file__).parent.parent
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unprivileged mounts")
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "No space left on device" in result.stdout


def test_a_limit_on_file_sizes_is_one_clear_line(run: Path) -> None:
    import resource

    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            with RunFolder.open(run, resume=True, overwrite=False) as folder:
                save_and_announce(folder, NEW, nothing)
        except StorageError as error:
            status = 0 if "File too large" in str(error) and str(run) in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_nothing_lost(run, [])


def test_a_disk_that_takes_only_small_parts_gets_all_of_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:777])

    create = durable_files.create

    def create_slow(path: Path) -> io.FileIO:
        create(path).close()
        return Slow(path, "wb")

    monkeypatch.setattr(durable_files, "create", create_slow)
    assert_goes_on(run)


# ---- a modelled power loss ---------------------------------------------------------------------------------------

SECTOR = 512


@dataclass
class ModelledDisk:
    """What may be on a disk after the power went: all that was synced, and any part of the rest.

    Unsynced bytes of a file are kept, dropped, zeroed or replaced by garbage, sector by sector; the file may be as
    short as it was at the last sync. Unsynced changes of names (new file, rename, deletion) are each kept or dropped; a
    rename is one change. These are the losses of Pillai et al. 2014 for journalling file systems, and worse ones.
    """

    files: dict[int, bytearray] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    """What is surely in the folder: name → file."""
    changes: list[tuple[str | None, str | None, int]] = field(default_factory=list)
    """Unsynced (name that goes, name that comes, file)."""
    current: dict[str, int] = field(default_factory=dict)
    """What the running system sees."""

    @classmethod
    def of(cls, folder: Path) -> "ModelledDisk":
        disk = cls()
        for path in folder.iterdir():
            disk._new_file(path.name, path.read_bytes())
        disk.synced = {file: bytes(data) for file, data in disk.files.items()}
        disk.names = dict(disk.current)
        disk.changes = []
        return disk

    def _new_file(self, name: str, data: bytes = b"") -> None:
        file = len(self.files)
        self.files[file], self.synced[file] = bytearray(data), b""
        self.current[name] = file
        self.changes.append((None, name, file))

    def apply(self, operation: str, arguments: tuple[Any, ...], open_files: dict[int, str]) -> None:
        """One operation of `durable_files`, as the log has it."""
        if operation == "create":
            self._new_file(arguments[0].name)
        elif operation == "write":
            self.files[self.current[open_files[id(arguments[0])]]] += bytes(arguments[1])
        elif operation == "sync":
            file = self.current[open_files[id(arguments[0])]]
            self.synced[file] = bytes(self.files[file])
        elif operation == "rename":
            source, target = arguments[0].name, arguments[1].name
            self.current[target] = self.current.pop(source)
            self.changes.append((source, target, self.current[target]))
        elif operation == "unlink" and arguments[0].name in self.current:
            self.changes.append((arguments[0].name, None, self.current.pop(arguments[0].name)))
        elif operation == "sync_folder":
            self.names, self.changes = dict(self.current), []

    def lose_power(self, folder: Path, source: random.Random) -> None:
        """Write into an empty folder what may be left."""
        names = dict(self.names)
        kept = [change for change in self.changes if source.random() < 0.5]
        for gone, come, file in kept:
            if gone is not None and names.get(gone) == file:
                del names[gone]
            if come is not None:
                names[come] = file
        for name, file in names.items():
            (folder / name).write_bytes(self._damaged(file, source))

    def _damaged(self, file: int, source: random.Random) -> bytes:
        whole, safe = bytes(self.files[file]), self.synced[file]
        if source.random() < 0.2:
            return safe
        data = bytearray(whole)
        for start in range(len(safe), len(whole), SECTOR):
            end = min(start + SECTOR, len(whole))
            fate = source.choice(("kept", "zeroed", "garbage"))
            if fate != "kept":
                data[start:end] = bytes(end - start) if fate == "zeroed" else source.randbytes(end - start)
        return bytes(data[: source.randint(len(safe), len(whole))] if source.random() < 0.3 else data)


def recorded_save(run: Path) -> tuple[ModelledDisk, list[tuple[str, tuple[Any, ...]]], dict[int, str]]:
    """The disk before a save, what the save did to it (with its announcements), and the names of its open files."""
    before = ModelledDisk.of(run)
    log: list[tuple[str, tuple[Any, ...]]] = []
    open_files: dict[int, str] = {}
    held: list[Any] = []  # keeps the file objects alive, so that no two share an id

    def record(number: int, name: str, operation: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        log.append((name, tuple(bytes(part) if isinstance(part, memoryview) else part for part in arguments)))
        result = operation(*arguments)
        if name == "create":
            held.append(result)
            open_files[id(result)] = arguments[0].name
        return result

    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = RunFolder.open(run, resume=True, overwrite=False)
        FaultyDisk(record).install(monkeypatch)
        folder.truncate_logs(OLD, OLD)
        save_and_announce(folder, NEW, lambda words: log.append((words, ())))
        folder.close()
    return before, log, open_files


def assert_survives_power_loss(run: Path, n_seeds: int) -> int:
    """Cut the power after every operation, `n_seeds` times each; returns how many cuts that were."""
    with copy_of(run) as copied:
        disk, log, open_files = recorded_save(copied)
    announced: list[str] = []
    n_cuts = 0
    for number, (operation, arguments) in enumerate(log):
        disk.apply(operation, arguments, open_files)
        if operation.startswith(("step ", "best ")):
            announced.append(operation)
        elif operation in ("open_to_read", "read_into", "list_folder"):
            continue  # the disk is as it was
        for seed in range(n_seeds):
            image = run.with_name("image")
            image.mkdir()
            disk.lose_power(image, random.Random(1000 * number + seed))
            assert_nothing_lost(image, list(announced), torn_files_allowed=True)
            assert (image / "metrics.jsonl").read_bytes() in METRICS
            if seed == 0:
                assert_goes_on(image)
            shutil.rmtree(image)
            n_cuts += 1
    return n_cuts


def test_a_modelled_power_loss_after_any_operation_loses_nothing(run: Path) -> None:
    assert assert_survives_power_loss(run, n_seeds=10) >= 200


@pytest.mark.slow
def test_a_modelled_power_loss_loses_nothing_in_thousands(run: Path) -> None:
    assert assert_survives_power_loss(run, n_seeds=400) > 8_000


# ---- the tests above notice when a safeguard is missing ----------------------------------------------------------


def rename_by_copying(source: Path, target: Path) -> None:
    durable_files.unlink(target)
    with durable_files.create(target) as file:
        durable_files.write(file, source.read_bytes())
        durable_files.sync(file)
    durable_files.unlink(source)


def write_in_place(path: Path, write_content: Callable[[Any], Any], verify: Any = None) -> Any:
    durable_files.unlink(path)
    with durable_files.create(path) as file:
        result = write_content(file)
        durable_files.sync(file)
    durable_files.sync_folder(path.parent)
    return result


def write_and_rename_before_syncing(path: Path, write_content: Callable[[Any], Any], verify: Any = None) -> Any:
    temporary = path.with_name(".late.tmp")
    with durable_files.create(temporary) as file:
        result = write_content(file)
        durable_files.rename(temporary, path)
        durable_files.sync(file)
    durable_files.sync_folder(path.parent)
    return result


def prune_before_saving(folder: RunFolder, step: int, *, keep: int, **values: Any) -> None:
    for _, path in checkpoint_choice.step_checkpoints(folder.path):
        durable_files.unlink(path)
    checkpoints.save_checkpoint(checkpoint_choice.step_path(folder.path, step), **values)


MUTANTS: dict[str, tuple[object, str, object]] = {
    "the file is not synced": (durable_files, "sync", nothing),
    "the folder is not synced": (durable_files, "sync_folder", nothing),
    "copied instead of renamed": (durable_files, "rename", rename_by_copying),
    "written in place": (durable_files, "write_atomically", write_in_place),
    "renamed before it is synced": (durable_files, "write_atomically", write_and_rename_before_syncing),
    "the old one deleted first": (RunFolder, "save_step", prune_before_saving),
    "leftovers not removed": (run_state, "_remove_leftovers", nothing),
    "announced, but not saved": (RunFolder, "save_step", nothing),
}


def assert_survives_everything(run: Path) -> None:
    assert_survives_power_loss(run, n_seeds=10)
    assert_survives_every_crash(run)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_safeguard_is_noticed(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, mutant)
    with pytest.raises((AssertionError, FileNotFoundError, UserError)):
        assert_survives_everything(run)
