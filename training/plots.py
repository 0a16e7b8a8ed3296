"""Pictures of a training run (matplotlib)."""

from __future__ import annotations

from pathlib import Path

from command_line import MissingPackageError
from training.metrics import read_metrics


def plot_loss(metrics_path: Path, image_path: Path, *, best_step: int) -> None:
    """Draw training and validation loss over the steps into a PNG file; raises MissingPackageError."""
    try:
        # The object interface: no global figure, and no window system is ever touched.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "the loss plot") from error
    metrics = read_metrics(metrics_path)
    training = [(line["step"], line["loss"]) for line in metrics if "loss" in line]
    validation = [(line["step"], line["validation_loss"]) for line in metrics if "validation_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if training:  # a full disk takes no lines
        axes.plot(*zip(*training, strict=True), linewidth=0.7, alpha=0.6, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), marker="o", markersize=3, label="validation")
        best = dict(validation).get(best_step)
        if best is not None:
            axes.annotate(
                f"best {best:.3f}", (best_step, best), xytext=(0, 10), textcoords="offset points", ha="center"
            )
        highest = max(loss for _, loss in validation[:1] + training[len(training) // 20 :])
        axes.set_ylim(top=highest * 1.05)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend()
    figure.savefig(image_path, dpi=120)
