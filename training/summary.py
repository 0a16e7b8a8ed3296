"""What a finished run leaves behind and says: the loss plot, the result beside plain counting, the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

from command_line import MissingPackageError
from data.prepare import PreparedCorpus
from model.checkpoint import StorageError
from training.counting import COUNTING_LIMIT_BYTES, counting_bits_per_byte
from training.plan import Plan
from training.plots import plot_loss
from training.run_state import RunFolder
from training.trainer import RunProgress

_MUCH_FASTER = 1.5


def summary_lines(
    corpus: PreparedCorpus, run_folder: RunFolder, done: RunProgress, *, interpreter: str, prompt: str
) -> list[str]:
    """Draw the loss plot and say what came out, one fact a line, the command that comes next as the last."""
    lines = [f"trained     {done.step:,} steps in {done.training_seconds:,.0f} s"]
    if done.best_step:
        lines.append(
            f"best        step {done.best_step:,}: validation loss {done.best_loss:.4f} nats per token, "
            f"{done.best_bits_per_byte:.4f} bits per byte"
        )
        if corpus.corpus_bytes <= COUNTING_LIMIT_BYTES:
            counting = counting_bits_per_byte(corpus.training_documents(), corpus.validation_documents())
            lines.append(
                f"            your GPT {done.best_bits_per_byte:.2f} · counting {counting.order}-gram "
                f"{counting.bits_per_byte:.2f} bits per byte"
            )
    files = [run_folder.best_path, run_folder.samples_path, run_folder.metrics_path]
    image = run_folder.path / "loss.png"
    try:
        if done.step:
            plot_loss(run_folder.metrics_path, image, best_step=done.best_step)
            files.append(image)
    except MissingPackageError as error:
        lines.append(f"no plot     {error}")
    except OSError as error:
        lines.append(f"no plot     {StorageError('draw', image, error)}")
    if not run_folder.best_path.exists():
        return [*lines, f"folder      {_short(run_folder.path)} (no best.pt yet)"]
    lines.append("files       " + ", ".join(str(_short(path)) for path in files if path.exists()))
    command = [interpreter, "generate.py", "--checkpoint", str(_short(run_folder.best_path)), "--prompt", prompt]
    lines.append(f"generate    {shlex.join(command)}")
    return lines


def misjudged_speed(plan: Plan, expected_seconds: float, done: RunProgress) -> list[str]:
    """What to tell when the steps of a timed run took much less time than the measured speed promised."""
    faster = expected_seconds / max(done.training_seconds, 1e-9)
    # A single step is the least that a plan has, also when there is no time; early stopping has its own reason.
    if faster < _MUCH_FASTER or plan.n_steps == 1 or done.step < plan.n_steps:
        return []
    reason = "measured without compiling" if plan.compile else "was the machine busy then?"
    return [
        f"notice      {faster:.1f} times as fast as measured before the first step ({reason}), so the run ended early; "
        f"--steps {plan.n_steps * faster:.0f} would take all of its time"
    ]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
