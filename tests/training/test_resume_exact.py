"""A resumed run ends with the bits of the unbroken one, wherever it was broken."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.prepare import PreparedCorpus
from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint_choice import step_path
from model.config import ModelConfig
from training.config import TrainConfig
from training.distributed import Workers
from training.fine_tuning import starting_model
from training.interruption import InterruptedRunError, Interruption
from training.plan import Plan
from training.run_state import RunFolder
from training.trainer import Trainer

CONTEXT_LENGTH = 16
PLAN = Plan(
    n_steps=10,
    sequences=40,  # about five steps an epoch of the corpus of these tests
    micro_batch_size=16,  # the last micro-batch of a step is smaller
    evaluate_every_steps=3,
    save_every_steps=1,
    device="cpu",
    precision="fp32",
    compile=False,
    threads=1,
)
MODEL = {"vocab_size": 257, "context_length": CONTEXT_LENGTH, "n_layer": 1, "n_head": 2, "n_embd": 8}

Configure = dict[str, Any]


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(
    run: Path,
    corpus: PreparedCorpus,
    plan: Plan = PLAN,
    *,
    model: Configure | None = None,
    stop_after: Callable[[int], bool] = lambda step: False,
    **config: Any,
) -> None:
    """Start a run or go on with it, as train.py does; a signal arrives after the steps that `stop_after` names."""
    torch.manual_seed(int.from_bytes(run.name.encode()[-4:], "big"))  # whatever the process did before
    with RunFolder.open(run, resume=True, overwrite=False) as folder:
        checkpoint = folder.newest_checkpoint()
        interruption = Interruption()
        train_config = TrainConfig(keep_checkpoints=1000, **config)
        torch.manual_seed(train_config.seed)
        model_config = ModelConfig(**{**MODEL, **(model or {})})
        gpt = starting_model(model_config, train_config, checkpoint, resumed=checkpoint is not None)

        def show_sample(step: int, progress: object) -> None:
            torch.rand(step)  # a sample may draw from the global random state

        trainer = Trainer(
            gpt,
            corpus,
            train_config,
            plan,
            folder,
            workers=Workers(),
            interruption=interruption,
            provenance={},
            show_sample=show_sample,
        )
        if checkpoint is not None:
            assert checkpoint.training_state is not None
            trainer.load_training_state(checkpoint.training_state)
        step = trainer._train_step

        def step_and_signal() -> float:
            loss = step()
            if stop_after(trainer.done.step):
                interruption.signal_number = signal.SIGTERM
            return loss

        trainer._train_step = step_and_signal  # type: ignore[method-assign]
        trainer.run()


def assert_equal_bits(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal_bits(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal_bits(left, right, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def everything(run: Path, step: int) -> dict[str, Any]:
    """All that a run leaves behind at a step, but for how long it took."""
    checkpoint: Checkpoint = load_checkpoint(step_path(run, step))
    assert checkpoint.training_state is not None
    state = dict(checkpoint.training_state)
    state["progress"] = {name: value for name, value in state["progress"].items() if name != "training_seconds"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return {"weights": checkpoint.state_dict, "state": state, "metrics": lines, "provenance": checkpoint.provenance}


def broken_off(run: Path, step: int, name: str) -> Path:
    """What a run killed some time after a step, and before the next save, leaves behind."""
    folder = run.with_name(name)
    folder.mkdir()
    shutil.copy(step_path(run, step), folder)
    shutil.copy(run / "metrics.jsonl", folder)  # with lines of later steps
    return folder


def test_a_run_resumed_at_any_step_ends_with_the_same_bits(tmp_path: Path, corpus: PreparedCorpus) -> None:
    settings: Configure = {"model": {"dropout": 0.2}, "optimizer": "muon"}
    train(tmp_path / "unbroken", corpus, **settings)
    expected = everything(tmp_path / "unbroken", PLAN.n_steps)
    for step in range(PLAN.n_steps + 1):
        run = broken_off(tmp_path / "unbroken", step, f"from-{step}")
        train(run, corpus, **settings)
        assert_equal_bits(everything(run, PLAN.n_steps), expected, f"from step {step}")


EPOCH = 5
MATRIX: dict[str, Configure] = {
    "adamw": {"optimizer": "adamw"},
    "adamw with dropout": {"optimizer": "adamw", "model": {"dropout": 0.3}},
    "tied head": {"model": {"dropout": 0.1, "tied_head": True}},
    "our parts": {
        "model": {
            "positions": "rotary",
            "normalization": "rmsnorm",
            "feed_forward": "relu_squared",
            "bias": False,
            "tied_head": False,
            "qk_norm": True,
            "bigram_rows": 32,
            "trigram_rows": 32,
        }
    },
    "grouped queries": {"model": {"n_kv_head": 1, "feed_forward": "swiglu"}, "optimizer": "adamw"},
    "no accumulation": {"plan": dataclasses.replace(PLAN, micro_batch_size=40)},
    "one sequence at a time": {"plan": dataclasses.replace(PLAN, sequences=6, micro_batch_size=1)},
    "cosine": {"schedule": "cosine", "warmup_fraction": 0.3},
    "warm-up, stable, decay": {"schedule": "wsd", "final_learning_rate": 0.1},
    "constant rate, no clipping": {"schedule": "constant", "gradient_clip": 0.0, "weight_decay": 0.0},
    "early stop": {"early_stop": 2, "learning_rate": 3.0, "plan": dataclasses.replace(PLAN, evaluate_every_steps=1)},
    "bfloat16": {"plan": dataclasses.replace(PLAN, precision="bf16")},
    "low-rank adapters": {"lora_rank": 2, "model": {"dropout": 0.1}},
    "low-rank adapters of attention": {"lora_rank": 3, "lora_matrices": "attention", "optimizer": "adamw"},
}


@pytest.mark.parametrize("name", MATRIX)
def test_resuming_is_exact_for_every_kind_of_run(tmp_path: Path, corpus: PreparedCorpus, name: str) -> None:
    """In mid-epoch, at the end of an epoch, just before and just after an evaluation."""
    settings = MATRIX[name]
    train(tmp_path / "unbroken", corpus, **settings)
    last = max(int(path.stem.removeprefix("step-")) for path in (tmp_path / "unbroken").glob("step-*.pt"))
    expected = everything(tmp_path / "unbroken", last)
    for step in {2, 3, EPOCH, 7} & set(range(last)):
        run = broken_off(tmp_path / "unbroken", step, f"from-{step}")
        train(run, corpus, **settings)
        assert_equal_bits(everything(run, last), expected, f"from step {step}")


def test_a_run_stopped_and_resumed_at_every_single_step_ends_with_the_same_bits(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    plan = dataclasses.replace(PLAN, save_every_steps=4)
    settings: Configure = {"model": {"dropout": 0.2}}
    train(tmp_path / "unbroken", corpus, plan, **settings)
    run = tmp_path / "chained"
    for step in range(1, PLAN.n_steps + 1):
        with pytest.raises(InterruptedRunError, match=f"stopped and saved at step {step} of {PLAN.n_steps}") as raised:
            train(run, corpus, plan, **settings, stop_after=lambda done: True)
        assert raised.value.exit_code == 143
    for _ in range(2):  # the first ends the run with its last evaluation, the second has nothing to do
        train(run, corpus, plan, **settings)
        assert_equal_bits(everything(run, PLAN.n_steps), everything(tmp_path / "unbroken", PLAN.n_steps))


def test_a_finished_run_resumed_does_nothing(tmp_path: Path, corpus: PreparedCorpus) -> None:
    train(tmp_path / "run", corpus)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    train(tmp_path / "run", corpus)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_a_step_of_adapters_is_saved_as_the_ordinary_model_that_it_computes(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    plan = dataclasses.replace(PLAN, evaluate_every_steps=10)
    train(tmp_path / "run", corpus, plan, lora_rank=2, learning_rate=0.1, schedule="constant")
    first, last, best = (
        load_checkpoint(tmp_path / "run" / name) for name in ("step-000000.pt", "step-000010.pt", "best.pt")
    )
    assert_equal_bits(best.state_dict, last.state_dict)
    adapted = {name for name, tensor in last.state_dict.items() if not torch.equal(tensor, first.state_dict[name])}
    matrices = ("attention.qkv", "attention.projection", "feed_forward.up", "feed_forward.down")
    assert adapted == {f"blocks.0.{matrix}.weight" for matrix in matrices}
    token_ids = torch.arange(97, 97 + CONTEXT_LENGTH).unsqueeze(0)
    running = starting_model(last.model_config, TrainConfig(lora_rank=2), last, resumed=True).eval()
    with torch.no_grad():
        logits = running(token_ids)
        torch.testing.assert_close(best.build_model()(token_ids), logits, rtol=0, atol=1e-5)
        assert (first.build_model()(token_ids) - logits).abs().max() > 1e-3
    assert last.training_state is not None
    moved = {name for kind in ("muon", "adamw") for name in last.training_state["optimizer"].get(kind, {})}
    assert moved == {name for name in running.state_dict() if "lora_" in name}


MUTANTS = ("weights", "optimizer", "progress")


@pytest.mark.parametrize("lost", MUTANTS)
def test_the_comparison_notices_what_is_not_restored(
    tmp_path: Path, corpus: PreparedCorpus, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "unbroken", corpus)
    run = broken_off(tmp_path / "unbroken", 4, "from-4")
    restore = Trainer.load_training_state

    def restore_partly(trainer: Trainer, state: dict[str, Any]) -> None:
        fresh = trainer.training_state()
        if lost == "weights":
            torch.nn.init.normal_(trainer.model.head.weight)
        restore(trainer, {**state, lost: fresh[lost]} if lost in state else state)

    monkeypatch.setattr(Trainer, "load_training_state", restore_partly)
    train(run, corpus)
    with pytest.raises(AssertionError):
        assert_equal_bits(everything(run, PLAN.n_steps), everything(tmp_path / "unbroken", PLAN.n_steps))
