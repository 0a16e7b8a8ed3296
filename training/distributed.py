"""One process or many: what `torchrun` starts, seen as one object. Without torchrun it does nothing, at no cost.

Rank 0 alone opens the run folder, prints and writes; what it finds there the others are told (`share`, `on_main`).
Whatever may fail in one process only is done inside `together`: then either all of them go on, or all of them end with
the same error, which rank 0 prints in one line. How the model itself is spread is the matter of `parallel`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from command_line import UserError
from generation.text_generator import choose_device
from training.interruption import Interruption

Result = TypeVar("Result")

_PATIENCE = datetime.timedelta(days=7)
"""Rank 0 may tokenise a large corpus for hours while the others wait; torch's own limit is half an hour."""


class WorkerError(UserError):
    """Another process of the run has failed; the message is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LostContactError(WorkerError):
    """Another process of the run is gone, and collectives with it may still be under way.

    Whoever drops a process group then waits for its threads, and they for Python's lock, which is held meanwhile
    (github.com/pytorch/pytorch/issues/56297): now and then the process would stay for ever.
    """

    ends_at_once = True


@dataclass(frozen=True)
class Workers:
    """The processes of one run; rank 0 talks and writes, all of them compute."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The number of this process on its machine."""
    local_world_size: int = 1
    """How many processes share this machine."""
    control: dist.ProcessGroup | None = None
    """Carries everything that is not a tensor of the training, over the CPU and with patience."""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """Print lines for the user, once."""
        if self.is_main:
            for line in lines:
                print(line, file=sys.stderr, flush=True)

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, value: int, device: torch.device) -> int:
        """The largest value of all processes."""
        if self.world_size == 1:
            return value
        values = torch.tensor(value, device=device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values.item())

    def share(self, value: Result) -> Result:
        """The value that rank 0 has, in every process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.control)
        return values[0]

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes, by rank, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    @contextlib.contextmanager
    def together(self, interruption: Interruption | None = None) -> Iterator[None]:
        """Around work that may fail in some of the processes: when it does, all of them raise that UserError.

        With an `interruption`, a signal to any of them ends all of them at once.
        """
        if self.world_size == 1:
            yield
            return
        failure: UserError | None = None
        try:
            with contextlib.nullcontext() if interruption is None else interruption.at_once():
                yield
        except UserError as error:
            failure = error
        where = f"process {self.rank} on {socket.gethostname()}: "
        failures = self.gather(None if failure is None else (where, str(failure), failure.exit_code))
        first = next((found for found in failures if found is not None), None)
        if first is None:
            return
        if self.is_main and failure is not None:
            raise failure
        where, message, exit_code = first
        raise WorkerError(("" if failures[0] is first else where) + message, exit_code)

    def on_main(self, work: Callable[[], Result], interruption: Interruption | None = None) -> Result:
        """Do something in rank 0 only: every process gets its result, or ends with its error."""
        result: Any = None
        with self.together(interruption):
            if self.is_main:
                result = work()
        shared: Result = self.share(result)
        return shared

    def one_per_machine_first(self, work: Callable[[], Result], interruption: Interruption) -> Result:
        """Do something in one process of each machine, then in the others, which find on the disk what it prepared."""
        result: Any = None
        for is_first_turn in (True, False):
            with self.together(interruption):
                if (self.local_rank == 0) == is_first_turn:
                    result = work()
        return result  # type: ignore[no-any-return]


@contextlib.contextmanager
def join_workers(device_name: str) -> Iterator[Workers]:
    """Join the processes that torchrun started; alone without torchrun.

    gloo between CPUs; where there are GPUs nccl for what lies on them, since a run that began on CPUs goes on there.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Workers()
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    uses_cuda = device_name.startswith(("auto", "cuda")) and torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if uses_cuda else "gloo"
    dist.init_process_group(backend, store=_meeting_place(), rank=rank, world_size=world_size)
    lost_contact = False
    try:
        yield Workers(
            rank,
            world_size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            control=dist.new_group(backend="gloo", timeout=_PATIENCE),
        )
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        lost_contact = True
        raise LostContactError(
            f"lost contact with another process of this run, which has ended; its own message, if any, says why; "
            f"the same command with --resume goes on from the newest checkpoint ({str(error).splitlines()[0][-120:]})",
            exit_code=1,
        ) from error
    finally:
        if not lost_contact:
            dist.destroy_process_group()


def _meeting_place() -> Store:
    """The store in which the processes find each other's addresses: a fresh part of it after every restart.

    torchrun keeps the store when it restarts its workers, with the addresses of the dead
    (github.com/pytorch/pytorch/issues/135712). Only on a single machine do all processes count restarts alike;
    docs/scaling.md tells what several need.
    """
    store, _, _ = next(rendezvous("env://"))
    on_one_machine = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if on_one_machine else "0"
    return PrefixStore(f"restart {restart}", store)


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed since a process at the other end is gone."""
    # gloo raises plain RuntimeErrors that name its source files.
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def local_device(name: str, workers: Workers) -> torch.device:
    """The device of this process: under torchrun each has a GPU of its own, cuda:LOCAL_RANK.

    Raises UserError when the device is not there, or not one for each process.
    """
    if workers.world_size == 1:
        return choose_device(name)
    if name == "mps" or (name.startswith("cuda:") and workers.local_world_size > 1):
        raise UserError(
            f"--device {name} is one device, but torchrun started {workers.local_world_size} processes on this "
            f"machine; give --device cuda (a GPU for each) or --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = choose_device(name)
    if name != "cuda":
        return device
    if workers.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started {workers.local_world_size} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs; give --nproc-per-node {torch.cuda.device_count()} or --device cpu"
        )
    torch.cuda.set_device(workers.local_rank)
    return torch.device("cuda", workers.local_rank)
