"""Seeing what a model is about to do: the next tokens with their probabilities, and a step as readable lines."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data.tokenizers.base import Tokenizer
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.decoding import Piece
from generation.logits_processors.base import LogitsProcessor
from generation.text_generator import TextGenerator
from generation.trace import Alternative, StepTrace, desired_of, draw_chances

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as something that can be read on one line: quoted, control characters and half characters escaped."""
    raw = tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b""
    if not raw:
        special = {tokenizer.end_of_text: "<end of text>", tokenizer.begin_of_text: "<begin of text>"}
        return special.get(token_id, f"<no text, id {token_id}>")
    text = raw.decode("utf-8", errors="surrogateescape")
    return "'" + "".join(_readable(character) for character in text) + "'"


def _readable(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is part of no whole character
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in "\\'" or not character.isprintable():
        return character.encode("unicode_escape").decode() if character != "'" else "\\'"
    return character


@dataclass(frozen=True)
class NextTokens:
    """The most probable continuations of one prompt."""

    prompt: str
    entropy: float
    """Of the model's own distribution, in nats."""
    tokens: list[Alternative]


@torch.inference_mode()
def next_tokens(
    generator: TextGenerator,
    prompt: str,
    n: int,
    sampling: SamplingConfig,
    processors: Sequence[LogitsProcessor] = (),
) -> NextTokens:
    """The n most probable next tokens under the model, with their chance behind the processors."""
    generator.model.eval()
    window = ContextWindow(generator.model, [generator.encode_prompt(prompt)], [0], sampling)
    logits = window.start()
    chain = generator.build_chain(sampling, processors)
    chain.read_from(window, generator.checkpoint_sha256)
    processed = chain(window.token_ids, logits, window.prompt_lengths)
    chances = draw_chances(processed, greedy=sampling.temperature == 0)[0]
    probabilities = logits.softmax(dim=-1)[0]
    top = probabilities.topk(min(n, len(probabilities))).indices.tolist()
    return NextTokens(
        prompt,
        float(torch.special.entr(probabilities).sum()),
        [
            Alternative(
                token, float(probabilities[token]), float(chances[token]), desired_of(chain.processors, 0, token)
            )
            for token in top
        ],
    )


def format_next_tokens(found: NextTokens, tokenizer: Tokenizer) -> str:
    """A table: rank, probability under the model, chance with the given settings, what each discriminator says of the
    token, bar, token.
    """
    labels = list(dict.fromkeys(label for token in found.tokens for label in token.desired))
    heading = "".join(f" {label:>{_label_width(label)}}" for label in labels)
    lines = [f"after {found.prompt[-40:]!r} (entropy {found.entropy:.2f} nats)", f"    model  settings{heading}"]
    best = found.tokens[0].probability
    for rank, token in enumerate(found.tokens, start=1):
        desired = "".join(
            f" {_percent(token.desired[label]) if label in token.desired else '–':>{_label_width(label)}}"
            for label in labels
        )
        lines.append(
            f"{rank:3} {_percent(token.probability)} {_percent(token.chance)}{desired}  "
            f"{bar(token.probability / best)} {token_text(tokenizer, token.token_id)}"
        )
    return "\n".join(lines)


def _label_width(label: str) -> int:
    return max(len(label), len(_percent(1)))


def bar(share: float) -> str:
    """A horizontal bar of a share from 0 to 1, in eighths of a character."""
    eighths = round(share * BAR_WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(BAR_WIDTH)


def pad(text: str, width: int) -> str:
    """Text filled with spaces to a width on screen, where a Chinese character takes two columns."""
    columns = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
    return text + " " * max(0, width - columns)


class Colours:
    """Terminal colours, or nothing where they would only be noise."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def paint(self, text: str, code: str) -> str:
        """The text in the colour of an ANSI code such as 1 (bold), 2 (dim) or 31 (red)."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled else text


def format_trace(piece: Piece, step: int, tokenizer: Tokenizer, colours: Colours) -> str:
    """One step as lines: the drawn token, the model's favourites, and what each processor changed."""
    trace = piece.trace
    assert trace is not None
    lines = [_headline(piece, trace, step, tokenizer, colours)]
    favourites = "  ".join(
        f"{token_text(tokenizer, token.token_id)} {_percent(token.probability).strip()}{_guided(token)}"
        for token in trace.alternatives
    )
    lines.append(colours.paint(f"    model: {favourites}  (entropy {trace.entropy:.2f} nats)", "2"))
    for stage in trace.stages:
        counts = f"{stage.candidates_before:>6} → {stage.candidates_after:<6} candidates, entropy {stage.entropy:.2f}"
        lost = ""
        if stage.removed is not None:
            lost = colours.paint(f"  took the lead from {token_text(tokenizer, stage.removed)}", "31")
        lines.append(f"    {pad(stage.name, 26)} {counts}{lost}")
    return "\n".join(lines)


def _guided(token: Alternative) -> str:
    """What the discriminators say of a token, and what becomes of it."""
    if not token.desired:
        return ""
    said = ", ".join(f"{label} {_percent(share).strip()}" for label, share in token.desired.items())
    return f" ({said} → {_percent(token.chance).strip()})"


def _headline(piece: Piece, trace: StepTrace, step: int, tokenizer: Tokenizer, colours: Colours) -> str:
    start = f"sample {piece.sample} · step {step}: "
    if piece.token_id is None or trace.probability is None or trace.chance is None:
        return start + colours.paint("no candidate is left", "31")
    token = colours.paint(token_text(tokenizer, piece.token_id), "1;32" if trace.rank == 1 else "1;33")
    chances = f"{_percent(trace.probability).strip()} under the model, {_percent(trace.chance).strip()} when drawn"
    return f"{start}{token} rank {trace.rank}, {chances}"


def _percent(share: float) -> str:
    return f"{100 * share:6.2f} %"
