"""The training loop. Read `Trainer.run` first: it is the whole of it.

A step is a pure function of the weights, the optimizer state and the step number: the batch is a function of seed and
step (`data.batches`), the learning rate too (`schedules`), and dropout is seeded anew for every step. So a run that was
killed and resumed ends with the same bits as one that was not, and evaluating or saving more often changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.distributed.tensor import DTensor

from command_line import EXIT_DIVERGED, UserError, config_to_dict
from data.batches import Batches
from data.prepare import PreparedCorpus
from model.checkpoint import StorageError
from model.gpt import GPT
from model.lora import merged, unmerged
from training.config import TrainConfig
from training.distributed import Workers, local_device
from training.evaluation import evaluate
from training.interruption import InterruptedRunError, Interruption
from training.metrics import MetricsLog
from training.optimizers import build_optimizer
from training.parallel import LossFunction, place, receive, spread, whole
from training.plan import Plan
from training.precision import autocast
from training.progress import Progress
from training.run_state import RunFolder
from training.schedules import learning_rate_factor


class DivergedError(UserError):
    """The loss or its gradient is no longer a finite number; the message says what helps."""

    exit_code = EXIT_DIVERGED


@dataclass
class RunProgress:
    """How far a run has come; all of it travels in every step checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    best_loss: float = math.inf
    best_bits_per_byte: float = math.inf
    best_step: int = 0
    evaluated_step: int = 0
    evaluations_without_better: int = 0
    training_seconds: float = 0.0


class Trainer:
    """One training run, from its first step or the one it is resumed at to its last.

    `plan` holds what was decided before the first step (`training.preflight`). `show_sample` is called after every
    evaluation with the step and may show what the model writes.
    """

    def __init__(
        self,
        model: GPT,
        corpus: PreparedCorpus,
        train_config: TrainConfig,
        plan: Plan,
        run_folder: RunFolder,
        *,
        workers: Workers,
        interruption: Interruption,
        provenance: dict[str, Any],
        show_sample: Callable[[int, Progress], None],
    ) -> None:
        self.corpus, self.config, self.plan = corpus, train_config, plan
        self.run_folder, self.workers, self.interruption = run_folder, workers, interruption
        self.provenance, self.show_sample = provenance, show_sample
        self.device = local_device(plan.device, workers)
        self.model = place(model, self.device, workers, train_config.parallel)
        self.batches = Batches(
            corpus.training,
            model.config.context_length,
            plan.sequences,
            train_config.seed,
            workers.rank,
            workers.world_size,
        )
        self.optimizer = build_optimizer(self.model, train_config)
        self.loss_function = LossFunction(self.model, workers, compiled=plan.compile)
        self.metrics = MetricsLog(run_folder.metrics_path)
        self.done = RunProgress()
        self._saved = (-1, -1)

    def run(self) -> RunProgress:
        """Train to the last step; returns how it went.

        Raises InterruptedRunError after a signal (everything is saved), DivergedError before an update by a loss or
        gradient that is not finite, StorageError when the last checkpoint cannot be saved.
        """
        batch_tokens = self.plan.sequences * self.model.config.context_length
        progress = Progress(self.plan.n_steps, self.done.step, batch_tokens, enabled=self.workers.is_main)
        with contextlib.closing(progress):
            while True:
                if self._is_due(self.plan.evaluate_every_steps) and self.done.evaluated_step != self.done.step:
                    self._evaluate(progress)
                is_last = self.done.step == self.plan.n_steps or self._is_early_stop()
                if is_last or self._is_due(self.plan.save_every_steps) or self.done.step == 0:
                    self._save(progress, must_succeed=is_last or self.done.step == 0)
                if is_last:
                    return self.done
                try:
                    loss = self._train_step()
                except InterruptedRunError:
                    self._stop(progress, self.interruption.signal_number or 0)
                progress.step(self.done.step, loss)
                # One process may have got a signal and another not (yet): they stop after the same step.
                signal_number = self.workers.max(self.interruption.signal_number or 0, self.device)
                if signal_number:
                    self._stop(progress, signal_number)

    def _is_due(self, every: int) -> bool:
        return self.done.step > 0 and (self.done.step % every == 0 or self.done.step == self.plan.n_steps)

    def _is_early_stop(self) -> bool:
        return 0 < self.config.early_stop <= self.done.evaluations_without_better

    def _train_step(self) -> float:
        """One optimizer step; returns the mean loss of its batch over all processes."""
        started, step = time.monotonic(), self.done.step
        # Dropout is a function of seed, step and rank, so there is no random state that could be lost.
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 1_009 + self.workers.rank)
        rate_factor = learning_rate_factor(step, self.plan.n_steps, self.config)
        self.optimizer.set_learning_rate_factor(rate_factor)
        try:
            loss = self._accumulate_gradients(step)
        except RuntimeError:
            # Ctrl-C in a terminal reaches the C++ compiler as well, and what it was to compile fails.
            if self.plan.compile and self.interruption.signal_number and self.workers.world_size == 1:
                raise InterruptedRunError("stopped", self.interruption.signal_number, has_saved=False) from None
            raise
        self._check_finite(loss, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done.step += 1
        self.done.training_seconds += time.monotonic() - started
        if self.workers.is_main:
            self.metrics.write(
                self.done.step,
                loss=loss,
                learning_rate_factor=rate_factor,
                seconds=round(self.done.training_seconds, 3),
            )
        return loss

    def _accumulate_gradients(self, step: int) -> float:
        token_ids, target_ids = (ids.to(self.device) for ids in self.batches.batch(step))  # (sequences, T)
        size = self.plan.micro_batch_size
        micro_batches = [(token_ids[i : i + size], target_ids[i : i + size]) for i in range(0, len(token_ids), size)]
        total = torch.zeros((), device=self.device)
        for number, (ids, targets) in enumerate(micro_batches):
            with self.loss_function.accumulating(is_last=number == len(micro_batches) - 1):
                with autocast(self.device, self.plan.precision):
                    # The last micro-batch may be smaller; each counts by its share of the sequences.
                    loss = self.loss_function(ids, targets) * (len(ids) / len(token_ids))
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return self.workers.sum(total).item() / self.workers.world_size

    def _check_finite(self, loss: float, step: int) -> None:
        """Clip the gradient; raise DivergedError, before anything is updated, when it or the loss is not finite."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()  # each process knew the norm of its shards only
        if not (math.isfinite(loss) and math.isfinite(norm.item())):
            what = "loss" if not math.isfinite(loss) else "gradient"
            saved = f"the last good checkpoint is step {self._saved[0]}" if self._saved[0] > 0 else "nothing is lost"
            raise DivergedError(
                f"the {what} of step {step + 1} is not a finite number, so the weights were not updated; {saved}; try "
                f"half the --learning-rate, a longer --warmup-fraction or --precision fp32"
            )
        if self.config.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)

    def _evaluate(self, progress: Progress) -> None:
        """Score the whole validation split; keep the best weights."""
        result = evaluate(
            self.model, self.corpus, device=self.device, precision=self.plan.precision, workers=self.workers
        )
        done = self.done
        done.evaluated_step = done.step
        done.evaluations_without_better += 1
        is_best = result.loss < done.best_loss
        if self.workers.is_main:
            self.metrics.write(done.step, validation_loss=result.loss, validation_bits_per_byte=result.bits_per_byte)
        progress.evaluated(result.loss, result.bits_per_byte)
        if is_best:
            done.evaluations_without_better = 0
            before = done.best_loss, done.best_bits_per_byte, done.best_step
            done.best_loss, done.best_bits_per_byte, done.best_step = result.loss, result.bits_per_byte, done.step
            if not self._save_best(progress):
                # The best is what best.pt holds; the next that is better than that takes its place.
                done.best_loss, done.best_bits_per_byte, done.best_step = before
        self.show_sample(done.step, progress)

    def _save_best(self, progress: Progress) -> bool:
        """Whether it could be saved: a full disk in mid-run costs a warning."""
        state_dict = whole(self.model.state_dict(), self.workers)

        def save() -> bool:
            with self._survived(progress, must_succeed=self.done.step == self.plan.n_steps):
                self.run_folder.save_best(
                    model_config=self.model.config,
                    state_dict=merged(self.model, state_dict),
                    tokenizer=self.corpus.tokenizer.state(),
                    provenance=self._provenance(),
                )
                return True
            return False

        return self.workers.on_main(save)

    def _save(self, progress: Progress, *, must_succeed: bool) -> None:
        """Write a step checkpoint; a full disk in mid-run costs a warning, not the run."""
        if self._saved == self._position:
            return
        state_dict = whole(self.model.state_dict(), self.workers)
        training_state = whole(self.training_state(), self.workers)

        def save() -> tuple[int, int]:
            with self._survived(progress, must_succeed):
                self.run_folder.save_step(
                    self.done.step,
                    model_config=self.model.config,
                    state_dict=merged(self.model, state_dict),
                    tokenizer=self.corpus.tokenizer.state(),
                    provenance=self._provenance(),
                    training_state=training_state,
                    keep=self.config.keep_checkpoints,
                )
                return self._position
            return self._saved

        self._saved = self.workers.on_main(save)

    @property
    def _position(self) -> tuple[int, int]:
        """A checkpoint of the same step that does not know of its evaluation is not the same checkpoint."""
        return self.done.step, self.done.evaluated_step

    @contextlib.contextmanager
    def _survived(self, progress: Progress, must_succeed: bool) -> Any:
        try:
            yield
        except StorageError as error:
            if must_succeed:
                raise
            progress.say(f"warning: {error}; training goes on and saves again later")

    def _stop(self, progress: Progress, signal_number: int) -> NoReturn:
        self._save(progress, must_succeed=True)
        message = f"stopped and saved at step {self.done.step} of {self.plan.n_steps}"
        raise InterruptedRunError(message, signal_number, has_saved=True)

    def training_state(self) -> dict[str, Any]:
        """Everything beside the weights that a resumed run needs, as plain data."""
        return {
            "train_config": config_to_dict(self.config),
            "plan": config_to_dict(self.plan),
            "progress": dict(vars(self.done)),
            "optimizer": self.optimizer.state_dict(),
            "adapters": unmerged(self.model, self.model.state_dict()),
            "corpus_hash": self.corpus.corpus_hash,
            "processes": self.workers.world_size,
            "random_state": torch.get_rng_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on where `training_state` was taken; metrics and samples of later steps are cut off."""
        self.done = RunProgress(**state["progress"])
        parameters = dict(self.model.named_parameters())
        self.optimizer.load_state_dict(spread(state["optimizer"], parameters, self.workers))
        torch.set_rng_state(receive(state["random_state"], self.workers))
        self._saved = self._position
        self.workers.on_main(self._tidy_run_folder)

    def _tidy_run_folder(self) -> None:
        """What a killed process left: lines of later steps, and a checkpoint too many when it died before deleting."""
        self.run_folder.truncate_logs(*self._position)
        self.run_folder.prune(self.config.keep_checkpoints)

    def _provenance(self) -> dict[str, Any]:
        done = self.done
        losses = {"loss": done.best_loss, "bits_per_byte": done.best_bits_per_byte, "step": done.best_step}
        return {
            **self.provenance,
            "step": done.step,
            "best_validation": losses if done.best_step else None,
        }
