"""The picture of the next token: it exists, it shows what it should, and Chinese is readable or escaped."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.tokenizers.characters import CharacterTokenizer
from generation import plots
from generation.plots import plot_next_token
from generation.text_generator import TextGenerator
from model.durable_files import StorageError
from model.gpt import GPT

matplotlib_figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")


@pytest.fixture
def chinese(build_model: Callable[..., GPT]) -> TextGenerator:
    return TextGenerator(build_model(vocab_size=7), CharacterTokenizer("武松打虎a$"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the figures that are drawn."""
    drawn: list[Any] = []
    original = matplotlib_figure.Figure.savefig

    def savefig(figure: Any, *arguments: Any, **settings: Any) -> None:
        drawn.append(figure)
        original(figure, *arguments, **settings)

    monkeypatch.setattr(matplotlib_figure.Figure, "savefig", savefig)
    return drawn


def test_a_picture_shows_the_temperatures_and_top_k_side_by_side(
    chinese: TextGenerator, tmp_path: Path, figures: list[Any]
) -> None:
    path = tmp_path / "next.png"
    plot_next_token(chinese, "武", path, top_k=2)
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["temperature 0.5", "temperature 1", "temperature 2", "temperature 1, then top-k 2"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths[0][0] > widths[1][0] > widths[2][0]
    assert sum(width > 0 for width in widths[3]) == 2
    for of_panel in widths:
        assert sum(of_panel) == pytest.approx(1, abs=1e-5)


def test_characters_that_no_font_shows_are_escaped(
    chinese: TextGenerator, tmp_path: Path, figures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_CHINESE_FONTS", ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_next_token(chinese, "武", tmp_path / "next.png")
    labels = {label.get_text() for label in figures[0].axes[0].get_yticklabels()}
    assert {"'\\u6b66'", "'a'", "'\\$'"} <= labels


def test_a_place_that_cannot_be_written_to_is_named(chinese: TextGenerator, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*missing.*next.png: No such file or directory"):
        plot_next_token(chinese, "a", tmp_path / "missing" / "next.png")
