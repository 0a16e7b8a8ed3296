"""Everything that decides how a GPT is trained, as one frozen dataclass.

`None` (or "auto") means: decided before the first step, from the corpus, the model and the machine. The decided config
(`training/preflight.py`) has no open field left; it travels in the checkpoint and a resumed run uses it unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from command_line import UserError, check_options, option


@dataclass(frozen=True)
class TrainConfig:
    """One training run; raises UserError when two options contradict each other."""

    data: str = option(
        "tales-en",
        "name of a known corpus, text file, folder, .jsonl, .gz, URL, or - for standard input",
        group="data",
        metavar="NAME|FILE|FOLDER|URL|-",
    )
    tokenizer: str = option("auto", "auto, char, byte, bpe:N, gpt2, cl100k_base or o200k_base", metavar="KIND")
    text_field: str = option("text", "field of a .jsonl line that holds the text", metavar="NAME")
    encoding: str = option("utf-8", "encoding of the text files", metavar="NAME")
    validation_fraction: float = option(0.1, "share of the corpus held out for validation", above=0, below=1)

    steps: int | None = option(
        None, "optimizer steps (default: as many as fit into --minutes)", at_least=0, group="length"
    )
    minutes: float | None = option(
        None,
        "time from start to exit; sets the steps from the measured speed (default: 3, unless --steps)",
        above=0,
        at_most=1e7,
    )
    early_stop: int = option(0, "stop after this many evaluations without a better one; 0: never", at_least=0)

    batch_tokens: int | None = option(
        None,
        "tokens of an optimizer step over all processes (default: by preset; about 2048 with --init)",
        at_least=1,
        group="batches",
    )
    micro_batch_size: int | None = option(
        None, "sequences of a forward pass per process (default: what fits)", at_least=1, at_most=2**20
    )
    seed: int = option(
        1337, "seed of the initial weights, the order of the data and dropout", at_least=0, at_most=2**31 - 1
    )

    optimizer: Literal["muon", "adamw"] = option(
        "muon", "muon: Muon for the matrices of the blocks, AdamW for the rest", group="optimizer"
    )
    learning_rate: float | None = option(
        None,
        "peak rate of the matrices (default: muon 0.02, adamw 0.001; a tenth with --init, a quarter for adapters)",
        above=0,
        at_most=1e6,
    )
    embedding_learning_rate: float | None = option(
        None, "muon: peak rate of AdamW for embeddings, head and gains (default: 0.005)", above=0, at_most=1e6
    )
    weight_decay: float | None = option(
        None,
        "decay of the matrices, times the learning rate (default: 0.1 for each epoch, 0.1 to 0.4; 0.1 with --init)",
        at_least=0,
    )
    embedding_weight_decay: float | None = option(
        None,
        "decay of embeddings and head, times their rate, 12.5 times as much for n-grams (default: 0.4 for each epoch, "
        "up to 1.6; 0 with --init)",
        at_least=0,
    )
    beta1: float = option(0.9, "AdamW: memory of the gradient", at_least=0, below=1)
    beta2: float = option(0.95, "AdamW: memory of the squared gradient", at_least=0, below=1)
    momentum: float = option(0.95, "Muon: memory of the gradient", at_least=0, below=1)
    gradient_clip: float = option(1.0, "largest norm of the whole gradient; 0: no limit", at_least=0)

    lora_rank: int = option(
        0,
        "with --init: train low-rank adapters of this rank beside frozen weights; 0: all weights",
        at_least=0,
        at_most=4096,
        group="low-rank adapters",
    )
    lora_alpha: float = option(16.0, "strength of the adapters; their product is scaled by alpha / rank", above=0)
    lora_matrices: Literal["all", "attention", "feed_forward"] = option("all", "matrices that get an adapter")

    schedule: Literal["cosine", "linear", "wsd", "constant"] = option(
        "linear", "shape of the learning rate after the warm-up (wsd: stable, then decay)", group="schedule"
    )
    warmup_fraction: float = option(0.02, "share of the steps in which the rate grows from 0", at_least=0, at_most=1)
    decay_fraction: float = option(
        0.4, "wsd: share of the steps in which the rate falls at the end", at_least=0, at_most=1
    )
    final_learning_rate: float = option(0.0, "rate at the last step, as a share of the peak", at_least=0, at_most=1)

    evaluate_every_steps: int | None = option(
        None,
        "steps between evaluations on the validation split (default: a tenth of the run, more where they take long)",
        at_least=1,
        group="evaluation",
    )
    save_every_steps: int | None = option(None, "steps between checkpoints (default: at every evaluation)", at_least=1)
    keep_checkpoints: int = option(2, "newest step checkpoints kept beside best.pt", at_least=1)
    sample_prompt: str | None = option(None, "prompt of the samples shown (default: by language)", metavar="TEXT")
    sample_tokens: int = option(48, "tokens of the sample shown at every evaluation; 0: no samples", at_least=0)

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", group="machine", metavar="NAME")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "arithmetic of the matrix products")
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile; auto: when the run is long enough to gain")
    threads: int | None = option(None, "CPU threads (default: torch's choice)", at_least=1, at_most=4096)
    parallel: Literal["ddp", "fsdp"] = option("ddp", "under torchrun: copy the model (ddp) or shard it (fsdp)")

    def __post_init__(self) -> None:
        check_options(self)
        if self.steps is not None and self.minutes is not None:
            raise UserError("--steps and --minutes both set the length of the run; give one of them")
