"""How much damage to a checkpoint is noticed? Bit flips and zeroed sectors, in ours and in what torch.save writes.

Silent means: the file loads, and some weight is not what was saved. The peer is plain `torch.save` and
`torch.load(weights_only=True)`, which is also how nanoGPT keeps its checkpoints, on the same weights.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import OURS, Comparison
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT

TRIALS = 10_000
SECTOR = 512
PEER = "torch.save, torch.load"
CONFIG = ModelConfig(vocab_size=65, context_length=8, n_layer=1, n_head=2, n_embd=16)

Load = Callable[[Path], dict[str, Tensor]]


def load_ours(path: Path) -> dict[str, Tensor]:
    """The weights as this project reads them."""
    return load_checkpoint(path).state_dict


def load_plainly(path: Path) -> dict[str, Tensor]:
    """The weights as plain PyTorch reads them."""
    state_dict: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state_dict


def fate(path: Path, load: Load, saved: dict[str, Tensor]) -> str:
    """What became of a damaged file: refused, silent, or harmless (the damage touched no weight)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged pickle may look like one of another protocol
            loaded = load(path)
    except CheckpointError:
        return "refused"
    except Exception:  # noqa: BLE001 - plain PyTorch has no error of its own for a damaged file
        return "refused"
    same = loaded.keys() == saved.keys() and all(torch.equal(loaded[name], weight) for name, weight in saved.items())
    return "harmless" if same else "silent"


def flip_bit(data: bytearray, source: random.Random) -> None:
    """One bit of the file turns over."""
    position = source.randrange(8 * len(data))
    data[position // 8] ^= 1 << position % 8


def zero_sector(data: bytearray, source: random.Random) -> None:
    """512 bytes of the file become zero, as after a power loss."""
    start = source.randrange(len(data) // SECTOR) * SECTOR
    data[start : start + SECTOR] = bytes(SECTOR)


def damage_often(
    good: bytes, path: Path, load: Load, saved: dict[str, Tensor], damage: Callable[..., None], n_trials: int
) -> dict[str, int]:
    """How many of so many damaged copies met which fate."""
    fates = {"refused": 0, "silent": 0, "harmless": 0}
    path.write_bytes(good)
    for seed in range(n_trials):
        data = bytearray(good)
        damage(data, random.Random(seed))
        with path.open("r+b") as file:
            file.write(data)
        fates[fate(path, load, saved) if data != good else "harmless"] += 1
    return fates


def answer(config: BenchmarkConfig) -> Report:
    """Damage both kinds of file in the same ways."""
    n_trials = config.turns(TRIALS) if not config.quick else 50
    torch.manual_seed(1)
    saved = GPT(CONFIG).state_dict()
    tokenizer, provenance = {"kind": "byte", "version": 1}, {"step": 1}
    comparisons, notes, facts = [], [], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = Path(folder) / "ours.pt", Path(folder) / "plain.pt"
        save_checkpoint(ours, model_config=CONFIG, state_dict=saved, tokenizer=tokenizer, provenance=provenance)
        torch.save({"state_dict": saved, "tokenizer": tokenizer, "provenance": provenance}, plain)
        for name, damage in (("one bit flipped", flip_bit), ("one 512-byte sector zeroed", zero_sector)):
            fates = {
                OURS: damage_often(ours.read_bytes(), ours, load_ours, saved, damage, n_trials),
                PEER: damage_often(plain.read_bytes(), plain, load_plainly, saved, damage, n_trials),
            }
            facts[name] = fates
            shares = [100 * fates[who]["silent"] / n_trials for who in (OURS, PEER)]
            comparisons.append(Comparison(f"{name}, loaded silently wrong", "%", PEER, [shares[0]], [shares[1]]))
            notes += [f"{name}, {who}, {n_trials} files: {found}" for who, found in fates.items()]
    return Report("How much damage to a checkpoint is noticed?", comparisons, notes, facts)


if __name__ == "__main__":
    run_benchmark("reliability_bitflips", str(__doc__), answer)
