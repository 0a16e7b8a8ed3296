"""The folder of one training run: who may write to it, which checkpoint is the newest good one, which may go.

    checkpoints/<run>/step-000400.pt   everything needed to go on: weights, optimizer, random states
    checkpoints/<run>/best.pt          the weights with the best validation loss, for generating
    checkpoints/<run>/metrics.jsonl    one JSON object a line, each with its `step`
    checkpoints/<run>/samples.md       what the model wrote on the way
    checkpoints/<run>/.lock            locked by the process that writes here, whose name it holds

While a run takes the place of another (--overwrite), its first checkpoint is called `new-step-000000.pt` until the old
files are gone. Nothing that verifies is deleted before something newer has been written, read back and verified.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from command_line import UserError
from model import durable_files
from model.checkpoint import (
    Checkpoint,
    CheckpointError,
    StorageError,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from model.checkpoint_choice import BEST, step_checkpoints, step_path
from model.config import ModelConfig
from training.run_lock import LOCK, take_lock

METRICS, SAMPLES = "metrics.jsonl", "samples.md"
_NEW = "new-"
"""Before the name of the first checkpoint of a run that takes the place of another: it is safe, and that one may go."""


class RunFolder:
    """The folder of one run, locked for this process until it is closed; use it as a context manager.

    Only `open` gives one to write to. Without a lock it knows its paths, which is all that the other processes of a
    run on several need.
    """

    def __init__(self, path: Path, lock: io.FileIO | None = None, *, replaces: bool = False) -> None:
        self.path = path
        self.metrics_path = path / METRICS
        self.samples_path = path / SAMPLES
        self.best_path = path / BEST
        self._lock = lock
        self._replaces = replaces
        self._verified: set[Path] = set()

    @classmethod
    def open(cls, path: Path, *, resume: bool, overwrite: bool) -> RunFolder:
        """Create or open a run folder and lock it.

        With `overwrite`, the old files go as soon as the first new checkpoint is safe, not before. Raises UserError
        when a run is there and neither flag is given, RunInUseError (exit 7) when another process writes here,
        StorageError when the disk refuses.
        """
        if resume and overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it; give one of them")
        try:
            lock = None
            while lock is None:
                durable_files.make_folder(path)
                lock = take_lock(path)
        except OSError as error:
            raise StorageError("open run folder", path, error) from error
        try:
            _finish_replacing(path)
            old = _files_of_run(path)
            if old and not (resume or overwrite):
                raise UserError(
                    f"run folder {path} holds a run already; go on with it by --resume, replace it by --overwrite, or "
                    f"choose another name with --run"
                )
            _remove_leftovers(path)
        except OSError as error:
            lock.close()
            raise StorageError("open run folder", path, error) from error
        except BaseException:
            lock.close()
            raise
        return cls(path, lock, replaces=overwrite and bool(old))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free for others; a folder that nothing was written to disappears again."""
        if self._lock is not None and not self._lock.closed:
            with contextlib.suppress(OSError):
                self._lock.truncate(0)
                if durable_files.list_folder(self.path) == [LOCK]:
                    durable_files.unlink(self.path / LOCK)
                    self.path.rmdir()
            self._lock.close()

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest step checkpoint that verifies, for going on; None when there is no run at all.

        A damaged one costs a warning and the next older one is taken; CheckpointError when all are damaged, UserError
        when there is a run without any.
        """
        if self._replaces:
            return None
        damaged = 0
        for _, path in step_checkpoints(self.path):
            try:
                checkpoint = load_checkpoint(path)
                if checkpoint.training_state is None:
                    raise CheckpointError(f"{path} holds no training state to go on from")
            except CheckpointError as error:
                print(f"warning: {error}", file=sys.stderr)
                damaged += 1
            else:
                self._verified.add(path)
                return checkpoint
        if damaged:
            raise CheckpointError(
                f"no usable checkpoint in {self.path} ({damaged} found, none intact); start again with --overwrite"
            )
        for left in _files_of_run(self.path):
            raise UserError(
                f"run folder {self.path} holds {left.name}, but no step checkpoint to go on from; start again with "
                f"--overwrite, or from a trained model with --run NAME --init CHECKPOINT"
            )
        return None

    def save_step(
        self,
        step: int,
        *,
        model_config: ModelConfig,
        state_dict: dict[str, Tensor],
        tokenizer: dict[str, Any],
        provenance: dict[str, Any],
        training_state: dict[str, Any],
        keep: int,
    ) -> str:
        """Save `step-NNNNNN.pt`, then delete all but the `keep` newest good ones; returns its SHA-256.

        Raises StorageError when the disk refuses; the older checkpoints are untouched then.
        """
        path = step_path(self.path, step)
        saved = path.with_name(_NEW + path.name) if self._replaces else path
        sha256 = save_checkpoint(
            saved,
            model_config=model_config,
            state_dict=state_dict,
            tokenizer=tokenizer,
            provenance=provenance,
            training_state=training_state,
        )
        if self._replaces:
            try:
                _replace_run(saved)
            except OSError as error:
                raise StorageError("replace the run in", self.path, error) from error
            self._replaces = False
        if not self._verified:
            self._warn_of_little_space(path, keep)
        self._verified.add(path)
        self.prune(keep)
        return sha256

    def save_best(
        self,
        *,
        model_config: ModelConfig,
        state_dict: dict[str, Tensor],
        tokenizer: dict[str, Any],
        provenance: dict[str, Any],
    ) -> str:
        """Save `best.pt` in place of the last best one; returns its SHA-256. Raises StorageError like `save_step`."""
        return save_checkpoint(
            self.best_path,
            model_config=model_config,
            state_dict=state_dict,
            tokenizer=tokenizer,
            provenance=provenance,
        )

    def truncate_logs(self, step: int, evaluated_step: int) -> None:
        """Cut metrics and samples back to what was written up to a step and up to its last evaluation, atomically.

        A resumed run writes what came later again; a line that a crash left unfinished goes, too.
        """
        _rewrite(self.metrics_path, lambda data: _metrics_until(data, step, evaluated_step))
        _rewrite(self.samples_path, lambda data: _samples_until(data, evaluated_step))

    def prune(self, keep: int) -> None:
        """Delete what is older than the `keep` newest checkpoints that verify; damaged ones do not count as kept."""
        good = 0
        try:
            paths = [path for _, path in step_checkpoints(self.path)]
        except StorageError as error:
            print(f"warning: {error}", file=sys.stderr)  # old checkpoints stay: that costs space, not work
            return
        for path in paths:
            if good >= keep:
                _delete(path)
            elif path in self._verified or _verifies(path):
                self._verified.add(path)
                good += 1

    def _warn_of_little_space(self, path: Path, keep: int) -> None:
        try:
            n_bytes, free = path.stat().st_size, durable_files.free_bytes(self.path)
        except OSError:
            return  # unknown, so nothing to warn of
        # While one more is written there are `keep` old ones, best.pt and the one being written.
        if free < (keep + 1) * n_bytes:
            print(
                f"warning: {free / 1e6:,.1f} MB are free for checkpoints of {n_bytes / 1e6:,.1f} MB each, of which the "
                f"run needs {keep + 1} more; saving may fail later (--keep-checkpoints 1 needs least)",
                file=sys.stderr,
            )


def _files_of_run(folder: Path) -> list[Path]:
    """The files that make a run, oldest checkpoint first."""
    steps = [path for _, path in reversed(step_checkpoints(folder))]
    return [*steps, *(folder / name for name in (BEST, METRICS, SAMPLES) if (folder / name).exists())]


def _replace_run(new: Path) -> None:
    """Let a run whose first checkpoint is safe take the place of the one before.

    The old files go first: a step of the old run beside one of the new would be taken for the newest.
    """
    for old in _files_of_run(new.parent):
        durable_files.unlink(old)
    durable_files.sync_folder(new.parent)
    durable_files.rename(new, new.with_name(new.name.removeprefix(_NEW)))
    durable_files.sync_folder(new.parent)


def _finish_replacing(folder: Path) -> None:
    """Go on where a process was killed while its run took the place of another."""
    for name in fnmatch.filter(durable_files.list_folder(folder), f"{_NEW}*"):
        if _verifies(folder / name):
            _replace_run(folder / name)
        else:
            durable_files.unlink(folder / name)


def _remove_leftovers(folder: Path) -> None:
    """Delete temporary files of processes that were killed; nobody else writes here while the lock is held."""
    for name in fnmatch.filter(durable_files.list_folder(folder), durable_files.TEMPORARY_PATTERN):
        durable_files.unlink(folder / name)


def _verifies(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError as error:
        print(f"warning: {error}", file=sys.stderr)
        return False
    return True


def _delete(path: Path) -> None:
    """Delete an old file; that it cannot be deleted costs space, not work."""
    try:
        durable_files.unlink(path)
    except OSError as error:
        print(f"warning: {StorageError('delete', path, error)}", file=sys.stderr)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace a file by a changed copy, in one step; one that is not there stays so."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError("read", path, error) from error
    changed = change(data)
    if changed != data:
        durable_files.write_atomically(path, lambda file: durable_files.write(file, changed))


def _metrics_until(data: bytes, step: int, evaluated_step: int) -> bytes:
    kept = []
    for line in data.splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(values, dict) and isinstance(values.get("step"), int):
            last = evaluated_step if "validation_loss" in values else step
            if values["step"] <= last:
                kept.append(line)
    return b"".join(kept)


def _samples_until(data: bytes, evaluated_step: int) -> bytes:
    for heading in re.finditer(rb"^## Step ([0-9]{1,18})$", data, re.MULTILINE):
        if int(heading[1]) > evaluated_step:
            return data[: heading.start()]
    return data
