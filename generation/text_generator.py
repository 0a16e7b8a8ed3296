"""From prompts to text: the one class that every front end reads (terminal, notebook, speech, training samples).

A step of `stream`: logits of the last position (`context_window`) → the processors in the order of their stages
(`logits_processors`) → one token per row (`sampling`) → whole characters (`text_stream`) → until a limit or a
criterion names its reason (`stopping`); `decoding` is the loop.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from command_line import UserError
from data.tokenizers.base import Tokenizer
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.decoding import Piece, decode
from generation.logits_processors.base import LogitsProcessor, ProcessorChain
from generation.logits_processors.from_config import processors_from_config
from generation.stopping import Limit, StoppingCriterion, TimeLimit, reached_reason
from generation.trace import StepTrace
from model.decoding_kernels import use_decoding_kernels
from model.gpt import GPT

Precision = Literal["auto", "fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Result:
    """A finished sample."""

    sample: int
    """Its number: prompt · num_samples + copy. With the seed and the settings it draws the same text again."""
    prompt: str
    text: str
    """The continuation, without the prompt."""
    reason: str
    """Why it ended: see `stopping`."""
    token_ids: list[int]
    """All tokens drawn, also those of the stop string and the end-of-text token that the text no longer holds."""
    log_probabilities: list[float]
    """Of each token, under the model before any processor, in nats."""
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    """For each token the model's most probable ones there with their probabilities, as many as asked for."""
    traces: list[StepTrace] = field(default_factory=list)
    """How each token was chosen, when asked for."""


def _ignore(notice: str) -> None:
    """Notices go nowhere unless the caller asks for them."""


class TextGenerator:
    """A model and its tokenizer, ready to continue texts.

    `notify` is called with one line when something happens that the user should know, such as a cropped prompt.
    """

    checkpoint_sha256: str | None = None
    """Says which weights these are, when they were loaded from a checkpoint."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, notify: Callable[[str], None] = _ignore) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model knows only "
                f"{model.config.vocab_size}; use the tokenizer that the model was trained with"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.notify = notify

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: Precision = "auto",
        *,
        compile: bool = False,
        notify: Callable[[str], None] = _ignore,
    ) -> "TextGenerator":
        """Open a checkpoint; raises CheckpointError when it is unusable, UserError when the device is not there.

        On a CPU, `compile` and the precisions bf16 and int8 decode with kernels (`model/decoding_kernels.py`).
        """
        from data.tokenizers.registry import tokenizer_from_state
        from model.checkpoint import CheckpointError, load_checkpoint

        target = choose_device(device)
        checkpoint = load_checkpoint(Path(path), device="cpu")
        tokenizer = tokenizer_from_state(checkpoint.tokenizer)
        ours, expected = tokenizer.vocab_size, checkpoint.model_config.vocab_size
        if ours != expected:
            raise CheckpointError(f"{path}: its tokenizer has {ours} tokens, its model {expected}")
        model = on_device(checkpoint.build_model(), target, precision, compile=compile)
        generator = cls(model, tokenizer, notify=notify)
        generator.checkpoint_sha256 = checkpoint.sha256
        return generator

    def generate(
        self,
        prompts: str | Sequence[str],
        sampling: SamplingConfig | None = None,
        *,
        processors: Sequence[LogitsProcessor] = (),
        criteria: Sequence[StoppingCriterion] = (),
        limits: Sequence[Limit] = (),
        n_alternatives: int = 0,
        explain: bool = False,
    ) -> list[Result]:
        """The finished samples of all prompts, in their order: `num_samples` for each prompt.

        Those that a limit kept from beginning are left out. All options are those of `stream`.
        """
        sampling = sampling or SamplingConfig()
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        pieces: list[list[Piece]] = [[] for _ in range(len(prompts) * sampling.num_samples)]
        for piece in self.stream(
            prompts,
            sampling,
            processors=processors,
            criteria=criteria,
            limits=limits,
            n_alternatives=n_alternatives,
            explain=explain,
        ):
            pieces[piece.sample].append(piece)
        return [
            Result(
                sample=sample,
                prompt=prompts[sample // sampling.num_samples],
                text="".join(piece.text for piece in of_sample),
                reason=of_sample[-1].reason or "",
                token_ids=[piece.token_id for piece in of_sample if piece.token_id is not None],
                log_probabilities=[p.log_probability for p in of_sample if p.log_probability is not None],
                alternatives=[piece.alternatives for piece in of_sample if piece.token_id is not None],
                traces=[piece.trace for piece in of_sample if piece.trace is not None],
            )
            for sample, of_sample in enumerate(pieces)
            if of_sample
        ]

    def stream(
        self,
        prompts: str | Sequence[str],
        sampling: SamplingConfig | None = None,
        *,
        processors: Sequence[LogitsProcessor] = (),
        criteria: Sequence[StoppingCriterion] = (),
        limits: Sequence[Limit] = (),
        n_alternatives: int = 0,
        explain: bool = False,
    ) -> Iterator[Piece]:
        """The pieces of all samples as they are drawn; `batch_size` of them run side by side, row by row to their end.

        `processors` and `criteria` of your own join those that the config asks for; `limits` of your own, like the
        config's time limit, end all that has begun and let nothing more begin. Every piece lists `n_alternatives` of
        the model's favourites, and with `explain` it carries a trace of its step.
        """
        sampling = sampling or SamplingConfig()
        prompt_ids = [self.encode_prompt(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        seconds = sampling.time_limit_seconds
        all_limits = [*limits, *([TimeLimit(seconds)] if seconds is not None else [])]
        n_samples = len(prompt_ids) * sampling.num_samples
        was_training = self.model.training
        self.model.eval()
        try:
            for first in range(0, n_samples, sampling.batch_size):
                # One batch is begun however little time there is.
                if reached_reason(all_limits if first else limits) is not None:
                    return
                samples = range(first, min(first + sampling.batch_size, n_samples))
                of_prompt = [sample // sampling.num_samples for sample in samples]
                window = ContextWindow(self.model, prompt_ids, of_prompt, sampling)
                # Fresh ones for every batch: some remember the tokens of its rows.
                chain = self.build_chain(sampling, processors)
                chain.read_from(window, self.checkpoint_sha256)
                yield from decode(
                    window, samples, self.tokenizer, sampling, chain, criteria, all_limits, n_alternatives, explain
                )
        finally:
            self.model.train(was_training)

    def build_chain(self, sampling: SamplingConfig, processors: Sequence[LogitsProcessor] = ()) -> ProcessorChain:
        """Fresh processors in the order in which they work; `str` of it is that order."""
        vocab_size = self.model.config.vocab_size
        return ProcessorChain([*processors_from_config(sampling, self.tokenizer, vocab_size), *processors])

    def encode_prompt(self, prompt: str) -> list[int]:
        """The tokens that the model sees of a prompt: the newest ones when it is longer than the context window.

        An empty prompt begins a new text. Raises UserError when the tokenizer cannot represent the prompt.
        """
        token_ids = self.tokenizer.encode(prompt)
        begin = self.tokenizer.begin_of_text
        if begin is not None:
            token_ids = [begin, *token_ids]
        elif not token_ids:
            token_ids = [self.tokenizer.end_of_text]
        n_visible = self.model.config.context_length
        n_cropped = max(0, len(token_ids) - n_visible)
        if n_cropped:
            self.notify(
                f"the prompt has {len(token_ids)} tokens, but the model sees only {n_visible} at once: "
                f"the first {n_cropped} are left out"
            )
        return token_ids[n_cropped:]


def choose_device(name: str) -> torch.device:
    """The device of a name: auto takes CUDA, then Apple's GPU, then the CPU. Raises UserError when it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    available += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name not in available:
        raise UserError(f"--device must be one of auto, {', '.join(available)} on this machine, but is {name!r}")
    return torch.device(name)


def on_device(model: GPT, device: torch.device, precision: Precision, *, compile: bool) -> GPT:
    """The model as it decodes there; auto: bf16 on CUDA, else fp32, where a text does not depend on its batch.

    Raises UserError for what the device cannot do.
    """
    if device.type == "cpu":
        if compile or precision in ("bf16", "int8"):
            use_decoding_kernels(model, "fp32" if precision == "auto" else precision)
        return model
    if compile or precision == "int8":
        flag = "--compile" if compile else "--precision int8"
        raise UserError(f"{flag} needs a CPU, but the device is {device.type}; leave it out, or add --device cpu")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return model.to(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
