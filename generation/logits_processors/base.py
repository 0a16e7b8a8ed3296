"""What a logits processor is, and the one order in which processors work.

The order matters: the same numbers give other texts when temperature comes after the truncation, or when guidance
comes before it. So every processor declares its stage, and the stages stand here:

    raw → penalties → bans → temperature → truncation → guidance → final_truncation → (sampling)

Writing one takes a few lines:

    class NoQuestions:
        name, stage = "no_questions", "bans"

        def __init__(self, tokenizer):
            self.banned = [i for i in range(tokenizer.vocab_size) if b"?" in tokenizer.token_bytes(i)]

        def __call__(self, token_ids, logits, prompt_lengths):
            return logits.index_fill(1, torch.tensor(self.banned, device=logits.device), -torch.inf)
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from command_line import UserError, closest

Stage = Literal["raw", "penalties", "bans", "temperature", "truncation", "guidance", "final_truncation"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class LogitsProcessor(Protocol):
    """One rule that changes the logits of the next token."""

    @property
    def name(self) -> str:
        """How traces call it, with its parameters: `top_k=5`."""
        ...

    @property
    def stage(self) -> Stage:
        """When it works."""
        ...

    def __call__(self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor) -> Tensor:
        """New logits (B, V) from logits (B, V) in float32; never edits its input.

        `token_ids` (B, T) holds prompt and generated tokens of each row, with −1 behind the shorter rows;
        `prompt_lengths` (B,) says where the prompt ends. All rows have generated equally many tokens. A token is
        banned by −inf, and what is −inf must stay so.
        """
        ...


class HiddenStates(Protocol):
    """Where the newest hidden states of a language model stand: a `ContextWindow`."""

    hidden: Tensor
    """Of the newest token of every row, (B, C); those that the logits were computed from."""
    hidden_total: Tensor
    """Summed over all tokens of every row, (B, C)."""
    lengths: list[int]
    """Number of tokens of every row."""


@runtime_checkable
class HiddenStateReader(Protocol):
    """A processor, or a part of one, that wants to see more of the language model than its logits."""

    def read_from(self, states: HiddenStates, language_model: str | None) -> None:
        """Called once before the first step of every batch; `language_model` is the SHA-256 of its checkpoint."""
        ...


def processor_name(processor: LogitsProcessor) -> str:
    """The name of a processor, the one of its class when it has none of its own."""
    return getattr(processor, "name", type(processor).__name__)


Observer = Callable[[LogitsProcessor, Tensor, Tensor], None]
"""Called with each processor and the logits (B, V) before and after it."""


class ProcessorChain:
    """Processors in the order of their stages; within a stage in the order given."""

    def __init__(self, processors: Sequence[LogitsProcessor]) -> None:
        for processor in processors:
            stage = getattr(processor, "stage", None)
            if stage not in STAGES:
                raise UserError(
                    f"the stage of {type(processor).__name__} must be one of {', '.join(STAGES)}, but is {stage!r}"
                    f"{closest(str(stage), STAGES)}"
                )
        self.processors = sorted(processors, key=lambda processor: STAGES.index(processor.stage))

    def read_from(self, states: HiddenStates, language_model: str | None) -> None:
        """Show the processors that ask for them where the hidden states of the language model stand."""
        for processor in self.processors:
            if isinstance(processor, HiddenStateReader):
                processor.read_from(states, language_model)

    def __call__(
        self, token_ids: Tensor, logits: Tensor, prompt_lengths: Tensor, observe: Observer | None = None
    ) -> Tensor:
        """The logits (B, V) after all processors; `observe` sees every single step."""
        for processor in self.processors:
            before = logits
            logits = processor(token_ids, before, prompt_lengths)
            if not isinstance(logits, Tensor) or logits.shape != before.shape:
                found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"{logits!r}"
                raise UserError(
                    f"the processor {processor_name(processor)} must return logits of shape {tuple(before.shape)}, "
                    f"but returned {found}"
                )
            if observe is not None:
                observe(processor, before, logits)
        return logits

    def __str__(self) -> str:
        """The effective order, such as `temperature=0.8 → top_k=5`."""
        return " → ".join(processor_name(processor) for processor in self.processors) or "(none)"
