"""How well a model predicts a text: `python -m generation.score FILE --checkpoint checkpoints/tales/best.pt`.

Perplexity, bits per byte and bits per character; with `--map` every word coloured by its surprise in the terminal, with
`--html` as a page of its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import (
    ArgumentParser,
    UserError,
    add_options,
    check_options,
    given_options,
    option,
    run_program,
)
from generation.config import CHECKPOINTS, LoadConfig
from generation.output import json_line, notify

if TYPE_CHECKING:
    # Only for their names: flags are answered before torch is loaded.
    from data.tokenizers.base import Tokenizer
    from model.gpt import GPT

BATCH_WINDOWS = 8


@dataclass(frozen=True)
class ScoreConfig:
    """What `python -m generation.score` is asked to do."""

    stride: int | None = option(
        None,
        "tokens from window to window; fewer give every token more context (default: half the context)",
        at_least=1,
        group="scoring",
    )
    map: bool = option(False, "print the text with every token coloured by its surprise")
    html: str | None = option(None, "write the coloured text as a self-contained page", metavar="FILE.html")
    json: bool = option(False, "print the numbers as one JSON object")
    text_field: str = option("text", "field of a .jsonl line that holds the text", metavar="NAME")
    encoding: str = option("utf-8", "encoding of the text files", metavar="NAME")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Score:
    """A text under a model; every token is counted once, the end of each document too."""

    token_ids: list[int]
    nats: list[float]
    """−log p of each token given the tokens before it."""
    n_documents: int
    n_characters: int
    n_bytes: int
    """Of the documents in UTF-8, without what separates them."""

    @property
    def total_nats(self) -> float:
        """Of all tokens together."""
        return math.fsum(self.nats)

    @property
    def perplexity(self) -> float:
        """e to the mean nats per token: among how many equally probable tokens the model hesitates."""
        return math.exp(min(700.0, self.total_nats / len(self.nats)))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between models of any tokenizer."""
        return self.total_nats / math.log(2) / self.n_bytes

    @property
    def bits_per_character(self) -> float:
        """As bits per byte, but per Unicode character."""
        return self.total_nats / math.log(2) / self.n_characters


def score_documents(model: "GPT", tokenizer: "Tokenizer", documents: Iterable[str], stride: int | None = None) -> Score:
    """Score documents as they are trained on: one behind the other, with an end of text behind each.

    A token sees at least C − stride tokens before it (except at the very beginning, where an end of text stands). A
    begin-of-text token, where the tokenizer has one, stands before each document and is not counted.
    Raises UserError when there is no text, or for a stride above the context.
    """
    # What stands before a document is given to the model and not predicted by it.
    before = [] if tokenizer.begin_of_text is None else [tokenizer.begin_of_text]
    stream = [] if before else [tokenizer.end_of_text]
    counted: list[int] = []  # places in the stream
    n_documents = n_characters = n_bytes = 0
    for document in documents:
        stream += before
        start = len(stream)
        stream += [*tokenizer.encode(document), tokenizer.end_of_text]
        counted += range(start, len(stream))
        n_documents, n_characters = n_documents + 1, n_characters + len(document)
        n_bytes += len(document.encode("utf-8", errors="surrogatepass"))
    if not n_bytes:
        raise UserError("there is no text to score")
    nats = token_nats(model, stream, stride)  # from the second token on
    return Score(
        [stream[place] for place in counted], [nats[place - 1] for place in counted], n_documents, n_characters, n_bytes
    )


def token_nats(model: "GPT", token_ids: list[int], stride: int | None = None) -> list[float]:
    """−log p of each token but the first, which is only context, in nats; windows overlap by C − stride tokens."""
    import torch

    context_length = model.config.context_length
    stride = stride or max(1, context_length // 2)
    if stride > context_length:
        raise UserError(f"--stride must be at most the model's context of {context_length} tokens, but is {stride}")
    device = model.token_embedding.weight.device
    tokens = torch.tensor(token_ids, device=device)
    n_targets = len(token_ids) - 1
    length = min(context_length, n_targets)
    last = n_targets - length
    starts = [*range(0, last, stride), last]
    nats: list[float] = []
    was_training = model.training
    model.eval()
    for first in range(0, len(starts), BATCH_WINDOWS):
        part = starts[first : first + BATCH_WINDOWS]
        windows = torch.stack([tokens[start : start + length + 1] for start in part])  # (B, T + 1)
        losses = model.token_losses(windows[:, :-1], windows[:, 1:]).float().cpu()  # (B, T)
        for start, of_window in zip(part, losses, strict=True):
            # A token is counted in the first window that reaches it; there it sees at least C − stride tokens.
            nats += of_window[len(nats) - start :].tolist()
    model.train(was_training)
    return nats


def build_parser() -> ArgumentParser:
    """All flags of generation.score."""
    parser = ArgumentParser(prog="python -m generation.score", description=__doc__)
    parser.add_argument("data", metavar="FILE", help="text file, folder, .jsonl, .gz, known corpus, or - for stdin")
    add_options(parser, LoadConfig, "model")
    add_options(parser, ScoreConfig, "scoring")
    return parser


def main() -> None:
    """Read the flags, score the text, print the numbers and what else was asked for."""
    arguments = build_parser().parse()
    load = LoadConfig(**given_options(arguments, LoadConfig))
    config = ScoreConfig(**given_options(arguments, ScoreConfig))

    from data.sources import open_source
    from model.checkpoint_choice import newest_run_checkpoint

    checkpoint = Path(load.checkpoint) if load.checkpoint else newest_run_checkpoint(CHECKPOINTS)
    source = open_source(arguments.data, text_field=config.text_field, encoding=config.encoding, flag="")

    from generation.surprise import html_page, terminal_map
    from generation.text_generator import TextGenerator
    from model.durable_files import StorageError

    generator = TextGenerator.load(checkpoint, load.device, load.precision, compile=load.compile, notify=notify)
    score = score_documents(generator.model, generator.tokenizer, source.documents(), config.stride)
    if config.map:
        print(terminal_map(score, generator.tokenizer))
    if config.html is not None:
        try:
            Path(config.html).write_text(
                html_page(score, generator.tokenizer, source.name), encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise StorageError("write", Path(config.html), error) from error
        notify(f"the page is in {config.html}")
    print(json_line(summary(score)) if config.json else describe(score))


def summary(score: Score) -> dict[str, float]:
    """The numbers of a score as plain data."""
    return {
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "bits_per_character": score.bits_per_character,
        "nats_per_token": score.total_nats / len(score.nats),
        "tokens": len(score.nats),
        "characters": score.n_characters,
        "bytes": score.n_bytes,
        "documents": score.n_documents,
    }


def describe(score: Score) -> str:
    """The numbers of a score as lines to read."""
    return (
        f"perplexity          {score.perplexity:.3f} per token ({score.total_nats / len(score.nats):.4f} nats)\n"
        f"bits per byte       {score.bits_per_byte:.4f}\n"
        f"bits per character  {score.bits_per_character:.4f}\n"
        f"counted             {len(score.nats):,} tokens, {score.n_characters:,} characters, {score.n_bytes:,} bytes, "
        f"{score.n_documents:,} documents with their ends"
    )


if __name__ == "__main__":
    run_program(main)
