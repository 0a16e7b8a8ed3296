"""A text coloured by how much each part surprised the model, for the terminal and as a page of its own."""

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass

from data.tokenizers.base import Tokenizer
from generation.score import Score
from generation.text_stream import TextStream

# From white to red; 12 bits are what a token of a vocabulary of 4,096 costs without any knowledge.
LEVEL_COLOURS = ("#ffffff", "#fff3e6", "#ffe4c4", "#ffd19e", "#ffb878", "#ff9a58", "#fb7a45", "#ef5a3c", "#dc3535")
BITS_PER_LEVEL = 1.5
# Background colours of the 256-colour palette in the same order.
_TERMINAL = (231, 230, 223, 222, 216, 215, 209, 203, 196)


@dataclass(frozen=True)
class Stretch:
    """The fewest tokens that make whole characters together, mostly one; `text` is empty for the end of a document."""

    text: str
    nats: float
    n_tokens: int

    @property
    def level(self) -> int:
        """Surprise on the colour scale."""
        return min(len(LEVEL_COLOURS) - 1, int(self.nats / math.log(2) / BITS_PER_LEVEL))


def stretches(score: Score, tokenizer: Tokenizer) -> Iterator[Stretch]:
    """The scored text in order; joined, the texts of a document are the document."""
    stream, nats, n_tokens = TextStream(tokenizer, begins_text=True), 0.0, 0
    for token, of_token in zip(score.token_ids, score.nats, strict=True):
        if token == tokenizer.end_of_text:
            yield Stretch("", of_token, 1)
            stream = TextStream(tokenizer, begins_text=True)
            continue
        text, nats, n_tokens = stream.push(token), nats + of_token, n_tokens + 1
        if text:
            yield Stretch(text, nats, n_tokens)
            nats, n_tokens = 0.0, 0


def terminal_map(score: Score, tokenizer: Tokenizer) -> str:
    """The text with a background colour by surprise (256-colour ANSI), and the scale below."""
    parts = [_paint(stretch.text or "⏎\n", stretch.level) for stretch in stretches(score, tokenizer)]
    scale = " ".join(_paint(f" {level * BITS_PER_LEVEL:g} ", level) for level in range(len(LEVEL_COLOURS)))
    return "".join(parts) + f"\nbits of surprise: {scale} and more; ⏎ ends a document"


def _paint(text: str, level: int) -> str:
    start, end = f"\x1b[30;48;5;{_TERMINAL[level]}m", "\x1b[0m"
    # A colour that spans a line break would fill the rest of the line.
    return "\n".join(f"{start}{line}{end}" if line else "" for line in text.split("\n"))


_PAGE = """<!doctype html>
<html lang="und"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Surprise: {name}</title>
<style>
body {{ font: 17px/1.7 Georgia, "Noto Serif CJK SC", serif; max-width: 46em; margin: 2em auto; padding: 0 1em;
       color: #1c1c1c; background: #fff; }}
p.text {{ white-space: pre-wrap; border-bottom: 1px solid #ddd; padding-bottom: 1em; }}
span {{ border-radius: 2px; }}
.scale span {{ padding: 0 .6em; }}
{colours}
</style></head><body>
<h1>{name}</h1>
<p>Perplexity {perplexity:.2f} per token · {bits_per_byte:.3f} bits per byte · {bits_per_character:.3f} bits per
character · {n_tokens:,} tokens. The redder, the less the model expected it; point at a word for its probability.</p>
<p class="scale">bits of surprise: {scale} and more</p>
{documents}
</body></html>
"""


def html_page(score: Score, tokenizer: Tokenizer, name: str) -> str:
    """The coloured text as one page that needs nothing else: no script, no other file, no network."""
    documents, current = [], ""
    for stretch in stretches(score, tokenizer):
        probability = math.exp(-stretch.nats)
        title = f"{stretch.nats / math.log(2):.2f} bits, probability {probability:.2g}"
        current += f'<span class="s{stretch.level}" title="{title}">{html.escape(stretch.text) or "⏎"}</span>'
        if not stretch.text:
            documents.append(f'<p class="text">{current}</p>')
            current = ""
    levels = range(len(LEVEL_COLOURS))
    return _PAGE.format(
        name=html.escape(name),
        colours="\n".join(f".s{level} {{ background: {LEVEL_COLOURS[level]}; }}" for level in levels),
        scale="".join(f'<span class="s{level}">{level * BITS_PER_LEVEL:g}</span>' for level in levels),
        perplexity=score.perplexity,
        bits_per_byte=score.bits_per_byte,
        bits_per_character=score.bits_per_character,
        n_tokens=len(score.nats),
        documents="\n".join(documents),
    )
