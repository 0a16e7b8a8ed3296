"""The picture of a comparison of guided texts: how many have the attribute, at what perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.guidance_arms import Arm


def plot_arms(arms: Mapping[str, Sequence[Arm]], path: Path) -> None:
    """One panel an attribute: a curve for each guided mode, its strengths beside it, a point for each other way."""
    # The object interface: no global figure, and no window system is ever touched.
    from matplotlib.figure import Figure

    n_columns = min(2, len(arms))
    n_rows = -(-len(arms) // n_columns)
    figure = Figure(figsize=(5 * n_columns, 3.8 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flat
    for axes, (name, of_name) in zip(panels, arms.items(), strict=False):
        modes: dict[str, list[Arm]] = {}
        for arm in of_name:
            modes.setdefault(arm.mode, []).append(arm)
        for mode, of_mode in modes.items():
            is_curve = mode in ("exact", "fast")
            axes.plot(
                [arm.perplexity_ratio for arm in of_mode],
                [100 * arm.rate for arm in of_mode],
                marker="o" if is_curve else "s",
                linestyle="-" if is_curve else "none",
                label=mode,
            )
            for arm in of_mode:
                strength = arm.name.removeprefix(mode).strip()
                if strength:
                    place = (arm.perplexity_ratio, 100 * arm.rate)
                    axes.annotate(strength, place, textcoords="offset points", xytext=(4, -9), fontsize=7)
        axes.set(title=name.replace("_", " "), xlabel="perplexity / unguided", ylabel="texts that have it, %")
        axes.grid(alpha=0.3)
    next(iter(figure.axes)).legend(fontsize=7)
    figure.savefig(path, dpi=110)
