"""Drawings of what becomes of the tokens (steps 8 to 11 of docs/decoding.md), from a model's own numbers."""

import math
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from docs.one_token import BLUE, GREY, ORANGE
from generation.beam_search import search_beams
from generation.best_of import draw_best
from generation.config import SamplingConfig, SpeechConfig
from generation.inspection import token_text
from generation.plots import readable_labels
from generation.score import score_documents
from generation.sentence_ends import SentenceEnds
from generation.sound_file import speak_to_file
from generation.surprise import BITS_PER_LEVEL, LEVEL_COLOURS, stretches
from generation.text_generator import Result, TextGenerator
from generation.text_stream import TextStream

BEGINNING = "One morning"
STOP = " the window"
CHINESE = "老虎笑了。"
TALE = "The old fox sat down by the river. She took off her shoes, and then she ate his algebra."
SPOKEN = "The fox said good morning. Then she looked at the small door! 老虎也说早上好。"


def held_back(generator: TextGenerator) -> Figure:
    """What each token adds to the screen: a possible stop string waits, and so do the bytes of a character."""
    settings = SamplingConfig(max_new_tokens=12, stop=(STOP,), seed=18)
    pieces = [piece for piece in generator.stream(BEGINNING, settings) if piece.token_id is not None]
    stream = TextStream(generator.tokenizer, begins_text=True)
    token_ids = generator.tokenizer.encode(CHINESE)
    figure = Figure(figsize=(8.5, 2.6), layout="constrained")
    above, below = figure.subplots(2, 1)
    names = [token_text(generator.tokenizer, piece.token_id or 0) for piece in pieces]
    draw_lanes(above, names, [piece.text for piece in pieces])
    above.set_title(f"--stop {STOP!r}: what might be its beginning waits ({pieces[-1].reason})", fontsize=9)
    names = [token_text(generator.tokenizer, token) for token in token_ids]
    draw_lanes(below, names, [stream.push(token) for token in token_ids])
    families, (title,) = readable_labels([f"the tokens of {CHINESE}: bytes wait for the rest of their character"])
    below.set_title(title, fontsize=9, fontfamily=families)
    return figure


def draw_lanes(axes: Axes, tokens: Sequence[str], shown: Sequence[str]) -> None:
    """A cell for each token, and below it what it brought to the screen; orange: nothing yet."""
    for place, (token, text) in enumerate(zip(tokens, shown, strict=True)):
        for height, label, colour in (
            (1, token, "0.93"),
            (0, repr(text) if text else "…", "0.99" if text else "#ffd8a8"),
        ):
            axes.add_patch(Rectangle((place, height), 1, 1, facecolor=colour, edgecolor="0.7"))
            families, (escaped,) = readable_labels([label])
            axes.text(place + 0.5, height + 0.5, escaped, ha="center", va="center", fontsize=7, fontfamily=families)
    axes.set(xlim=(0, len(tokens)), ylim=(0, 2), xticks=[])
    axes.set_yticks([1.5, 0.5], ["token", "shown"], fontsize=8)


def strategies(generator: TextGenerator) -> Figure:
    """How probable the texts of greedy decoding, beams and draws are as a whole, by their length."""
    drawing = SamplingConfig(num_samples=16, seed=1)
    drawn = generator.generate(BEGINNING, drawing)
    (best,) = draw_best(generator, [BEGINNING], SamplingConfig(seed=1), 16)
    greedy = generator.generate(BEGINNING, SamplingConfig(temperature=0))
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axes = figure.subplots()
    scatter(axes, drawn, "16 draws", "o", GREY)
    scatter(axes, [best], "the best of them by mean log-probability", "*", BLUE)
    scatter(axes, greedy, "greedy", "s", "C2")
    for number, n_beams in enumerate((2, 4, 8)):
        found = search_beams(generator, [BEGINNING], SamplingConfig(), n_beams)
        scatter(axes, found, f"{n_beams} beams: {found[0].text.strip()[:40]}", "v", f"C{3 + number}")
    axes.set(xlabel="tokens", ylabel="log-probability of the text, nats", title=f"texts that go on from {BEGINNING!r}")
    axes.legend(fontsize=8)
    return figure


def scatter(axes: Axes, results: Sequence[Result], label: str, marker: str, colour: str) -> None:
    """A point for each text."""
    totals = [math.fsum(result.log_probabilities) for result in results]
    size = 130 if marker == "*" else 40
    axes.scatter([len(r.token_ids) for r in results], totals, s=size, c=colour, marker=marker, label=label)


def surprise(generator: TextGenerator) -> Figure:
    """A text as `--map` shows it: the background of every token is its surprise."""
    score = score_documents(generator.model, generator.tokenizer, [TALE])
    n_columns = 46
    figure = Figure(figsize=(8.5, 2.1))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    column, line = 0, 0
    for stretch in stretches(score, generator.tokenizer):
        text = stretch.text or "⏎"
        if column + len(text) > n_columns:
            column, line, text = 0, line + 1, text.removeprefix(" ")
        cell(axes, column, line, text, LEVEL_COLOURS[stretch.level], f"{stretch.nats / math.log(2):.1f}")
        column += len(text)
    for level, colour in enumerate(LEVEL_COLOURS):
        cell(axes, 5 * level, line + 1.4, f"{level * BITS_PER_LEVEL:^5g}", colour, "")
    cell(axes, 5 * len(LEVEL_COLOURS), line + 1.4, "bits", "white", "")
    axes.set(xlim=(0, n_columns + 4), ylim=(line + 2.4, -0.5))
    axes.axis("off")
    return figure


def cell(axes: Axes, column: float, line: float, text: str, colour: str, note: str) -> None:
    """Fixed-width text on a background, with a small number above it."""
    axes.add_patch(Rectangle((column, line - 0.1), len(text), 0.62, facecolor=colour))
    for place, character in enumerate(text):
        axes.text(
            column + place + 0.5, line + 0.22, character, ha="center", va="center", family="monospace", fontsize=11
        )
    axes.text(column + len(text) / 2, line - 0.22, note, ha="center", va="center", fontsize=6, color="0.45")


def speech(generator: TextGenerator) -> Figure:
    """The sound of three sentences, each spoken as soon as it is whole, the last by a Chinese voice."""
    figure = Figure(figsize=(8.5, 2.2), layout="constrained")
    axes = figure.subplots()
    start = 0.0
    for number, sentence in enumerate(sentences(SPOKEN)):
        seconds, amplitudes = spoken(sentence)
        axes.plot(start + seconds, amplitudes, color=(BLUE, ORANGE, "C2")[number % 3], linewidth=0.5)
        families, (label,) = readable_labels([sentence.strip()])
        axes.text(start + seconds[-1] / 2, 1.08, label, ha="center", fontsize=8, fontfamily=families)
        start += seconds[-1]
    axes.set(xlabel="seconds", yticks=[], ylim=(-1, 1.3), xlim=(0, start))
    return figure


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, as they are handed to the voice."""
    ends = SentenceEnds().find(text)
    starts = [0, *ends]
    yield from (
        text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True) if text[start:end].strip()
    )


def spoken(sentence: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times in seconds and amplitudes from −1 to 1 of a spoken sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentence.wav"
        speak_to_file(sentence, path, SpeechConfig())
        with wave.open(str(path)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype=np.int16)
            rate = sound.getframerate()
    # Every tenth sample draws the same picture.
    amplitudes = samples[::10] / max(1, int(np.abs(samples).max()))
    return np.arange(len(amplitudes)) * 10 / rate, amplitudes
