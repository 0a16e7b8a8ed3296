"""Which file? The checkpoints of a run folder by their names, and the best one of the newest run."""

from __future__ import annotations

import sys
from pathlib import Path

from model import durable_files
from model.checkpoint import verify_checkpoint
from model.checkpoint_format import CheckpointError
from model.checkpoint_reader import CheckpointReader
from model.durable_files import StorageError

BEST = "best.pt"
_STEP_PREFIX, _SUFFIX = "step-", ".pt"


def step_path(run: Path, step: int) -> Path:
    """The path of a run's checkpoint after a step."""
    return run / f"{_STEP_PREFIX}{step:06d}{_SUFFIX}"


def step_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The step checkpoints in a run folder by name, newest first; not yet verified. Raises StorageError."""
    found = []
    for name in _list(run):
        digits = name.removeprefix(_STEP_PREFIX).removesuffix(_SUFFIX)
        if digits.isascii() and digits.isdigit() and len(digits) < 19 and name == step_path(run, int(digits)).name:
            found.append((int(digits), run / name))
    return sorted(found, reverse=True)


def _list(folder: Path) -> list[str]:
    try:
        return durable_files.list_folder(folder)
    except OSError as error:
        raise StorageError("look into", folder, error) from error


def newest_run_checkpoint(checkpoints_folder: Path) -> Path:
    """The best language model of the newest run that has a usable one.

    What the files say of themselves decides which run is new, never their modification times. A damaged file costs a
    warning; CheckpointError when nothing is left.
    """
    n_damaged = 0
    runs: list[tuple[float, list[Path]]] = []
    for name in _list(checkpoints_folder):
        run = checkpoints_folder / name
        cards = []
        for path in (run / BEST, *(path for _, path in step_checkpoints(run))):
            if path.exists():
                try:
                    with CheckpointReader(path) as reader:
                        cards.append(reader.read_card())
                except CheckpointError as error:
                    n_damaged += _warn(error)
        models = [card for card in cards if card.content.get("kind") == "gpt"]
        if models:
            runs.append((max(card.saved_at for card in models), [card.path for card in models]))
    for _, paths in sorted(runs, reverse=True):
        for path in paths:
            try:
                verify_checkpoint(path)
            except CheckpointError as error:
                n_damaged += _warn(error)
            else:
                return path
    state = f"no usable checkpoint ({n_damaged} damaged)" if n_damaged else "no checkpoint"
    raise CheckpointError(f"there is {state} under {checkpoints_folder}; train a model first: python train.py")


def _warn(error: CheckpointError) -> int:
    print(f"warning: {error}", file=sys.stderr)
    return 1
