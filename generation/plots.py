"""Pictures of the next token's distribution (matplotlib)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from command_line import MissingPackageError
from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.inspection import token_text
from generation.logits_processors.base import ProcessorChain
from generation.logits_processors.truncation import Temperature, TopK
from generation.text_generator import TextGenerator
from model.durable_files import StorageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_TOKENS = 12
TEMPERATURES = (0.5, 1.0, 2.0)

# Fonts that show Chinese on Linux, macOS and Windows; matplotlib's own has no such characters.
_CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Zen Hei",
    "SimHei",
)


def plot_next_token(generator: TextGenerator, prompt: str, image_path: Path, top_k: int | None = None) -> None:
    """Write the picture of `next_token_figure` to a file.

    Raises MissingPackageError without matplotlib and StorageError when the file cannot be written.
    """
    figure = next_token_figure(generator, prompt, top_k)
    try:
        figure.savefig(image_path, dpi=120)
    except OSError as error:
        raise StorageError("write", image_path, error) from error


def next_token_figure(generator: TextGenerator, prompt: str, top_k: int | None = None) -> Figure:
    """Draw how temperature and top-k change the distribution of the token after `prompt`, panels side by side.

    Raises MissingPackageError without matplotlib.
    """
    try:
        # The object interface: no global figure, and no window system is ever touched.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "--plot") from error
    top_k = top_k or 5
    with torch.inference_mode():
        logits = ContextWindow(generator.model, [generator.encode_prompt(prompt)], [0], SamplingConfig()).start()
    tokens = logits[0].topk(min(N_TOKENS, logits.shape[1])).indices
    panels = {
        **{f"temperature {t:g}": _distribution(logits, t, None) for t in TEMPERATURES},
        f"temperature 1, then top-k {top_k}": _distribution(logits, 1.0, top_k),
    }
    families, labels = readable_labels([token_text(generator.tokenizer, token) for token in tokens.tolist()])
    figure = Figure(figsize=(3.2 * len(panels), 4.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for axes, (title, probabilities) in zip(all_axes, panels.items(), strict=True):
        _draw_bars(axes, title, probabilities[tokens].tolist())
    all_axes[0].set_yticks(range(len(labels)), labels, fontfamily=families)
    all_axes[0].invert_yaxis()
    (title_families, (shown,)) = readable_labels([repr(prompt[-60:])])
    figure.suptitle(f"next token after {shown}", fontfamily=title_families)
    return figure


def _distribution(logits: torch.Tensor, temperature: float, top_k: int | None) -> torch.Tensor:
    """Probabilities of logits (1, V) behind temperature and top-k, (V,)."""
    chain = ProcessorChain([Temperature(temperature), *([TopK(top_k)] if top_k else [])])
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    return chain(nothing, logits, torch.zeros(1, dtype=torch.int64)).softmax(dim=-1)[0].cpu()


def _draw_bars(axes: Axes, title: str, probabilities: Sequence[float]) -> None:
    positions = range(len(probabilities))
    axes.barh(positions, probabilities, color=["C0" if share > 0 else "0.8" for share in probabilities])
    for position, share in zip(positions, probabilities, strict=True):
        note = f" {100 * share:.1f} %" if share > 0 else " cut off"
        axes.text(share, position, note, va="center", fontsize=8, color="0.3")
    rest = max(0.0, 1 - sum(probabilities))
    axes.set(title=title, xlabel=f"probability (all others {100 * rest:.1f} %)")
    axes.margins(x=0.35)


def readable_labels(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Font families that show the labels, and the labels with escapes for what no installed font can show."""
    from matplotlib import font_manager

    # A Chinese font of another weight than "normal" does as well; matplotlib would say so on stderr.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]
    shown = {code for name in families for code in font_manager.get_font(installed[name]).get_charmap()}
    # A dollar sign would begin a formula.
    escaped = [
        "".join(character if ord(character) in shown else f"\\u{ord(character):04x}" for character in label)
        for label in labels
    ]
    return families, [label.replace("$", r"\$") for label in escaped]
