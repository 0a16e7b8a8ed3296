"""How much memory is left, and what is said when it is too little: before training, or while it runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from command_line import EXIT_OUT_OF_MEMORY, UserError
from model.config import ModelConfig
from model.cost import TrainingMemory, block_matrices

_CONTROL_GROUPS = (
    # Linux's limits for a container: version 2, then version 1 of control groups.
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_UNKNOWN = 1 << 62
"""More than any machine has: where nothing is known, nothing is refused."""


class TooLittleMemoryError(UserError):
    """The run does not fit into memory; the message says what would."""

    exit_code = EXIT_OUT_OF_MEMORY


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give to this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_in_machine(), _free_in_container(), _free_in_process())


def _free_in_machine() -> int:
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _UNKNOWN  # not Linux


def _free_in_container() -> int:
    for limit, used in _CONTROL_GROUPS:
        try:
            # ValueError: "max", which is no limit.
            return max(0, int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return _UNKNOWN


def _free_in_process() -> int:
    """What `ulimit -v` leaves."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return _UNKNOWN  # not Linux
    return _UNKNOWN if limit == resource.RLIM_INFINITY else max(0, limit - used)


def sharded_memory(memory: TrainingMemory, model_config: ModelConfig, world_size: int) -> int:
    """Bytes that each of `world_size` processes needs for a model that FSDP cuts among them.

    What is collected to compute with are the embeddings and the head, which stay, and two blocks: one that works and
    one that is being fetched; their gradients as well.
    """
    block_weights = 4 * block_matrices(model_config)
    collected = memory.weights - block_weights + 2 * block_weights // model_config.n_layer
    shard = (memory.weights + memory.gradients + memory.optimizer) // world_size
    return min(memory.total, shard + 2 * collected + memory.activations)


@contextlib.contextmanager
def shortage_explained(device: torch.device, micro_batch_size: int) -> Iterator[None]:
    """Turn what torch and Python raise for a failed allocation into a TooLittleMemoryError with numbers.

    No estimate knows what other programs take while a run lasts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if type(error) is RuntimeError and "DefaultCPUAllocator" not in str(error):
            raise
        tried = re.search(r"tried to allocate [\d.]+ \w+", str(error), re.IGNORECASE)
        smaller = f"--micro-batch-size {micro_batch_size // 2}" if micro_batch_size > 1 else "a smaller --preset"
        raise TooLittleMemoryError(
            f"{device} ran out of memory with {micro_batch_size} windows at once "
            f"({tried[0].lower() + ', ' if tried else ''}{free_memory(device) / 1e9:.2f} GB are free); checkpoints are "
            f"untouched; close other programs, or try {smaller}"
        ) from error
