"""The README tells the truth: its commands parse, its map names every file, its pages and pictures exist."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import convert
import generate
import train
from command_line import ArgumentParser
from generation import score
from training import train_discriminator

PROJECT = Path(train.__file__).parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "train.py": train.build_parser,
    "generate.py": generate.build_parser,
    "convert.py": convert.build_parser,
    "-m generation.score": score.build_parser,
    "-m training.train_discriminator": train_discriminator.build_parser,
}
COMMANDS = sorted(
    {
        match.strip()
        for text in (README, *(page.read_text(encoding="utf-8") for page in (PROJECT / "docs").glob("*.md")))
        for match in re.findall(r"^    (?:\$ )?(?:\.venv/bin/)?python3? ((?:\w+\.py|-m \w+\.\w+) .*)$", text, re.M)
    }
)
ROOMS = ("model", "data", "training", "generation")


def command_parts(command: str) -> tuple[str, list[str]]:
    """The program and its words, without the comment behind them."""
    words = shlex.split(command, comments=True)
    return (" ".join(words[:2]), words[2:]) if words[0] == "-m" else (words[0], words[1:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if command_parts(command)[0] in PARSERS])
def test_every_command_shown_is_understood(command: str) -> None:
    program, words = command_parts(command)
    PARSERS[program]().parse(words)


def test_there_are_commands_to_check() -> None:
    assert len({command_parts(command)[0] for command in COMMANDS} & set(PARSERS)) == len(PARSERS)


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_names_every_file_of_a_room(room: str) -> None:
    row_starts = [match.start() for match in re.finditer(r"\| \*\*", README)] + [len(README)]
    start = README.index(f"| **{room}/**")
    section = README[start : min(position for position in row_starts if position > start)]
    named = set(re.findall(r"`(\w+)/?`", section))
    present = {path.stem for path in (PROJECT / room).glob("*.py")} - {"__init__"}
    present |= {path.parent.name for path in (PROJECT / room).glob("*/__init__.py")}
    assert present - named == set()


def test_every_file_linked_exists() -> None:
    paths = re.findall(r"\]\(((?!http)[^)#]+)\)|`((?:docs|data|checkpoints)/\w+\.md)`", README)
    named = {link or page for link, page in paths}
    assert named
    assert [path for path in named if not (PROJECT / path).exists()] == []
