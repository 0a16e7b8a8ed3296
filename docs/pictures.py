"""Draws the pictures of docs/decoding.md from a trained model: `python -m docs.pictures`.

All that they show is computed by the code that generates. `--only next-token-zh` needs a Chinese model.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from command_line import (
    ArgumentParser,
    UserError,
    add_options,
    check_options,
    closest,
    given_options,
    option,
    run_program,
)
from docs import one_token, whole_texts
from generation.config import CHECKPOINTS, LoadConfig
from generation.output import notify
from generation.plots import next_token_figure
from generation.text_generator import TextGenerator
from model.checkpoint_choice import newest_run_checkpoint

CHINESE = "next-token-zh"
PICTURES: dict[str, Callable[[TextGenerator], Figure]] = {
    "window": one_token.window,
    "last-step": one_token.last_step,
    "draw": one_token.draws,
    "next-token": lambda generator: next_token_figure(generator, one_token.PROMPT, top_k=5),
    CHINESE: lambda generator: next_token_figure(generator, "老虎", top_k=5),
    "truncation": one_token.truncation,
    "bans": one_token.bans,
    "stages": one_token.stages,
    "held-back": whole_texts.held_back,
    "strategies": whole_texts.strategies,
    "surprise": whole_texts.surprise,
    "speech": whole_texts.speech,
}
"""The pictures in the order of the page, by the names of their files."""


@dataclass(frozen=True)
class PictureConfig:
    """Which pictures to draw, and where to put them."""

    only: tuple[str, ...] = option(
        (),
        "name of a picture; may be given several times (default: all that an English model can draw)",
        group="pictures",
    )
    folder: str = option("docs", "where the PNG files go", metavar="FOLDER")

    def __post_init__(self) -> None:
        check_options(self)
        for name in self.only:
            if name not in PICTURES:
                raise UserError(
                    f"--only must be one of {', '.join(PICTURES)}, but is {name!r}{closest(name, list(PICTURES))}"
                )


def build_parser() -> ArgumentParser:
    """All flags of docs.pictures."""
    parser = ArgumentParser(prog="python -m docs.pictures", description=__doc__)
    add_options(parser, LoadConfig, "model")
    add_options(parser, PictureConfig, "pictures")
    return parser


def save(figure: Figure, path: Path) -> None:
    """Write a picture with a palette of 64 colours, a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    """Draw what was asked for."""
    arguments = build_parser().parse()
    load = LoadConfig(**given_options(arguments, LoadConfig))
    config = PictureConfig(**given_options(arguments, PictureConfig))
    checkpoint = load.checkpoint or newest_run_checkpoint(CHECKPOINTS)
    generator = TextGenerator.load(checkpoint, load.device, load.precision, compile=load.compile)
    for name in config.only or [name for name in PICTURES if name != CHINESE]:
        path = Path(config.folder) / f"{name}.png"
        save(PICTURES[name](generator), path)
        notify(f"the picture is in {path}")


if __name__ == "__main__":
    run_program(main)
