"""The training loop: what a step does, what it never does, and how a run ends."""

import dataclasses
import math

import pytest
import torch

from model.checkpoint import load_checkpoint
from tests.training.conftest import PLAN, BuildTrainer
from training.metrics import read_metrics
from training.trainer import DivergedError, Trainer


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_a_step_moves_the_weights_by_the_gradient_of_the_mean_loss(build_trainer: BuildTrainer) -> None:
    # The reference: one pass over the whole batch, and AdamW's first step, which is the sign of the gradient.
    plan = dataclasses.replace(PLAN, n_steps=1, micro_batch_size=3)
    trainer = build_trainer(
        plan, optimizer="adamw", learning_rate=0.01, weight_decay=0.0, warmup_fraction=0.0, gradient_clip=0.0
    )
    token_ids, target_ids = trainer.batches.batch(0)
    before = weights(trainer)
    loss = trainer.model.loss(token_ids, target_ids)
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    trainer.run()
    for parameter, start, gradient in zip(trainer.model.parameters(), before, gradients, strict=True):
        clear = gradient.abs() > 1e-5  # below, AdamW's epsilon and rounding decide
        assert torch.allclose((parameter - start)[clear], -0.01 * gradient.sign()[clear], rtol=1e-2)
    (first,) = [line for line in read_metrics(trainer.metrics.path) if "loss" in line]
    assert first["loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_clipping_bounds_the_norm_of_the_whole_gradient(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(gradient_clip=0.001)
    trainer._check_finite(trainer._accumulate_gradients(0), 0)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in trainer.model.parameters() if p.grad is not None))
    assert norm == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(("evaluate_every_steps", "save_every_steps"), [(1, 2), (3, 1), (3, 5)])
def test_evaluating_and_saving_more_often_changes_no_weight(
    build_trainer: BuildTrainer, evaluate_every_steps: int, save_every_steps: int
) -> None:
    plain = build_trainer(model={"dropout": 0.2})
    plain.run()
    plan = dataclasses.replace(PLAN, evaluate_every_steps=evaluate_every_steps, save_every_steps=save_every_steps)
    other = build_trainer(plan, run="other", model={"dropout": 0.2})
    other.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(other), strict=True))


def test_random_numbers_that_others_draw_between_steps_change_no_weight(build_trainer: BuildTrainer) -> None:
    plain, other = (build_trainer(run=name, model={"dropout": 0.2}) for name in ("plain", "other"))
    for _ in range(3):
        plain._train_step()
    for _ in range(3):
        torch.rand(7)
        other._train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(other), strict=True))


def test_dropout_differs_from_step_to_step(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(model={"dropout": 0.5})
    states = []
    for _ in range(2):
        trainer._train_step()
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)


def test_the_best_checkpoint_holds_the_weights_of_the_best_evaluation(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(dataclasses.replace(PLAN, evaluate_every_steps=1), learning_rate=0.5)
    done = trainer.run()
    losses = {line["step"]: line["validation_loss"] for line in read_metrics(trainer.metrics.path) if len(line) == 3}
    assert len(losses) == PLAN.n_steps
    assert done.best_step == min(losses, key=losses.__getitem__)
    best = load_checkpoint(trainer.run_folder.best_path)
    assert best.provenance["best_validation"]["loss"] == losses[done.best_step]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    trainer = build_trainer()
    accumulate = trainer._accumulate_gradients

    def poisoned(step: int) -> float:
        loss = accumulate(step)
        if step == 3 and where == "loss":
            return math.nan
        if step == 3:
            gradient = trainer.model.head.weight.grad
            assert gradient is not None
            gradient[0, 0] = math.inf
        return loss

    monkeypatch.setattr(trainer, "_accumulate_gradients", poisoned)
    with pytest.raises(
        DivergedError, match=f"the {where} of step 4 is not a finite number.*checkpoint is step 2"
    ) as error:
        trainer.run()
    assert error.value.exit_code == 5
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    checkpoint = trainer.run_folder.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.training_state is not None
    assert checkpoint.training_state["progress"]["step"] == 2


def test_early_stop_ends_after_so_many_evaluations_without_a_better_one(build_trainer: BuildTrainer) -> None:
    plan = dataclasses.replace(PLAN, n_steps=50, evaluate_every_steps=1, save_every_steps=50)
    # A rate this high makes the model worse after its first steps.
    trainer = build_trainer(plan, early_stop=2, learning_rate=5.0, embedding_learning_rate=5.0, warmup_fraction=0.0)
    done = trainer.run()
    assert done.step < 50
    assert done.step == done.best_step + 2
    assert trainer.run_folder.newest_checkpoint() is not None


def test_a_run_of_no_steps_saves_its_initial_weights(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(dataclasses.replace(PLAN, n_steps=0))
    before = weights(trainer)
    trainer.run()
    checkpoint = trainer.run_folder.newest_checkpoint()
    assert checkpoint is not None
    assert all(
        torch.equal(a, checkpoint.state_dict[name])
        for a, (name, _) in zip(before, trainer.model.named_parameters(), strict=True)
    )
