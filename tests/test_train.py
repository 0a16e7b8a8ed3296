"""train.py as a user runs it: on a text of their own, again, and with every kind of mistake."""

import dataclasses
import functools
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from command_line import UserError
from data.prepare import prepare_corpus
from data.tokenizers.utf8_bytes import ByteTokenizer
from model.checkpoint import CheckpointError, read_card, save_checkpoint, verify_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from training import preflight, prepared_run
from training.plan import Plan
from training.speed import Speed
from training.summary import misjudged_speed
from training.trainer import RunProgress

PROJECT = Path(train.__file__).parent
TINY_FLAGS = (
    *("--tokenizer", "byte", "--context-length", 32, "--n-layer", 1, "--n-head", 2, "--n-embd", 16),
    *("--bigram-rows", 32, "--batch-tokens", 128, "--precision", "fp32", "--threads", 1),
    *("--sample-tokens", 8, "--sample-prompt", "the"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "my text.txt"
    path.write_text("".join(f"the {word} is here. " for word in ("cat", "dog", "fox")) * 80, encoding="utf-8")
    return path


@pytest.fixture
def run_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run train.py's main in this process with its checkpoints under tmp_path; returns what it said on stderr."""
    monkeypatch.setattr(train, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(
        prepared_run, "prepare_corpus", functools.partial(prepare_corpus, cache_folder=tmp_path / "tokens")
    )

    def run(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
        train.main()
        return capsys.readouterr().err

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_files_of_a_folder_that_are_left_out_are_named(run_train, text: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "text.txt").write_bytes(text.read_bytes())
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"\x89PNG\0")
    said = run_train("--data", folder, "--steps", 1, "--dry-run", *TINY_FLAGS)
    assert "notice      left out, since they hold no text: a.png, b.png\n" in said
    for name in ("c.png", "d.png", "e.png"):
        (folder / name).write_bytes(b"\x89PNG\0")
    said = run_train("--data", folder, "--steps", 1, "--dry-run", *TINY_FLAGS)
    assert "notice      left out, since they hold no text: a.png, b.png, c.png and 2 more\n" in said


def test_help_says_of_the_model_that_its_defaults_are_those_of_the_preset() -> None:
    text = " ".join(train.build_parser().format_help().split())
    title = "model (default: the preset's)"
    of_model = text[text.index(title) + len(title) : text.index("examples:")]
    assert "--context-length N tokens the model sees at once --" in of_model
    own = " ".join(field.metadata["help"] for field in dataclasses.fields(ModelConfig) if field.metadata["flag"])
    assert re.findall(r"\(default: .*?\)", of_model) == re.findall(r"\(default: .*?\)", own)


def test_a_run_leaves_all_it_promises(run_train, text: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = run_train("--data", text, "--run", "mine", "--steps", 6, "--evaluate-every-steps", 3, *TINY_FLAGS)
    folder = tmp_path / "checkpoints" / "mine"
    for fact in ("corpus", "tokens/s measured", "bits per byte", "counting", "generate.py --checkpoint"):
        assert fact in said
    assert "\x1b" not in said  # not a terminal: no colours, no moving bar
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = (folder / "samples.md").read_text(encoding="utf-8")
    assert samples.count("## Step") == 2
    assert "\n\nthe" in samples
    loaded = torch.load(folder / "best.pt", weights_only=True)
    GPT(ModelConfig(**loaded["model_config"])).load_state_dict(loaded["state_dict"])
    assert loaded["provenance"]["corpus"] == "my text.txt"


def test_resuming_a_finished_run_repeats_its_summary_and_trains_nothing(run_train, text: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ("--data", text, "--run", "mine", "--steps", 2, *TINY_FLAGS)
    run_train(*flags)
    before = (tmp_path / "checkpoints/mine/best.pt").read_bytes()
    said = run_train(*flags, "--resume")
    assert "at step 2 of 2" in said
    assert "best        step 2" in said
    assert (tmp_path / "checkpoints/mine/best.pt").read_bytes() == before


def test_a_second_run_in_the_same_folder_needs_a_word(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ("--data", text, "--run", "mine", "--steps", 1, *TINY_FLAGS)
    run_train(*flags)
    with pytest.raises(UserError, match=r"--resume.*--overwrite"):
        run_train(*flags)
    run_train(*flags, "--overwrite")


def test_a_resumed_run_refuses_flags_that_differ_from_it(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ("--data", text, "--run", "mine", *TINY_FLAGS)
    run_train(*flags, "--steps", 1)
    with pytest.raises(UserError, match=r"--learning-rate 0.5 differs from the run"):
        run_train(*flags, "--steps", 1, "--learning-rate", "0.5", "--resume")
    with pytest.raises(UserError, match=r"--n-embd 32 differs from the run in .*, which has 16"):
        run_train(*flags, "--n-embd", 32, "--resume")
    with pytest.raises(UserError, match=r"has another model than --preset small"):
        run_train("--data", text, "--run", "mine", "--preset", "small", "--resume")
    run_train(*flags, "--steps", 1, "--preset", "mini", "--resume")


def test_a_prompt_for_samples_is_checked_before_the_first_step_and_may_change_on_the_way(  # type: ignore[no-untyped-def]
    run_train, text: Path, tmp_path: Path
) -> None:
    flags = ("--data", text, "--run", "mine", *TINY_FLAGS, "--tokenizer", "char", "--steps", 4)
    with pytest.raises(UserError, match="'雪'"):
        run_train(*flags, "--sample-prompt", "雪")
    assert list(tmp_path.glob("checkpoints/mine/*.pt")) == []
    run_train(*flags, "--save-every-steps", 2)
    (tmp_path / "checkpoints/mine/step-000004.pt").unlink()
    run_train(*flags, "--save-every-steps", 2, "--sample-prompt", "here", "--resume")
    assert "\n\nhere" in (tmp_path / "checkpoints/mine/samples.md").read_text(encoding="utf-8")


def test_a_resumed_run_refuses_a_changed_corpus(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ("--data", text, "--run", "mine", "--steps", 1, *TINY_FLAGS)
    run_train(*flags)
    text.write_text(text.read_text() + "one word more")
    with pytest.raises(UserError, match="has changed since the run"):
        run_train(*flags, "--resume")


def test_a_dry_run_reports_and_writes_nothing(run_train, text: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = run_train("--data", text, "--run", "mine", "--steps", 3, "--dry-run", *TINY_FLAGS)
    assert "3 steps of 128 tokens" in said
    assert not (tmp_path / "checkpoints").exists()


def test_fine_tuning_starts_from_the_weights_and_the_tokenizer_of_a_checkpoint(  # type: ignore[no-untyped-def]
    run_train, text: Path, tmp_path: Path
) -> None:
    run_train("--data", text, "--run", "base", "--steps", 3, *TINY_FLAGS)
    base = tmp_path / "checkpoints/base/best.pt"
    run_train("--data", text, "--run", "tuned", "--init", base, "--steps", 0, "--sample-tokens", 0)
    tuned = torch.load(tmp_path / "checkpoints/tuned/step-000000.pt", weights_only=True)
    original = torch.load(base, weights_only=True)
    assert all(torch.equal(tuned["state_dict"][name], value) for name, value in original["state_dict"].items())
    assert tuned["tokenizer"] == original["tokenizer"]
    assert tuned["training_state"]["train_config"]["learning_rate"] == pytest.approx(0.1 * 0.02)
    assert tuned["training_state"]["train_config"]["weight_decay"] == 0.1


def test_adapters_leave_an_ordinary_checkpoint_and_resume_without_the_one_they_started_from(  # type: ignore[no-untyped-def]
    run_train, text: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.pt"
    model = GPT(ModelConfig(vocab_size=257, context_length=32, n_layer=1, n_head=2, n_embd=16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizer = ByteTokenizer().state()
    save_checkpoint(base, model_config=model.config, state_dict=before, tokenizer=tokenizer, provenance={})
    flags = ("--data", text, "--init", base, "--lora-rank", 2, "--run", "tuned", "--steps", 3)
    said = run_train(*flags, "--sample-tokens", 0, "--threads", 1)
    # Both sides of each matrix: (16 + 48) + (16 + 16) of attention, 2 × (16 + 64) of the feed-forward layer.
    assert f"trained: {2 * (96 + 160)} in adapters" in said
    tuned = torch.load(tmp_path / "checkpoints/tuned/best.pt", weights_only=True)
    GPT(ModelConfig(**tuned["model_config"])).load_state_dict(tuned["state_dict"])
    changed = {name for name, tensor in tuned["state_dict"].items() if not torch.equal(tensor, before[name])}
    matrices = ("attention.qkv", "attention.projection", "feed_forward.up", "feed_forward.down")
    assert changed == {f"blocks.0.{matrix}.weight" for matrix in matrices}
    origin = {"provenance": {"started_from": verify_checkpoint(base)}}
    other = tmp_path / "other.pt"
    save_checkpoint(other, model_config=model.config, state_dict=before, tokenizer=tokenizer, provenance={"step": 1})
    with pytest.raises(UserError, match=r"--init .*other\.pt is not what the run in .*tuned started from"):
        run_train(*flags, "--resume", "--init", other)
    base.unlink()
    assert "at step 3 of 3" in run_train(*flags, "--resume")
    for step in (tmp_path / "checkpoints/tuned").glob("step-00000[123].pt"):
        step.unlink()
    run_train(*flags, "--resume")
    assert read_card(tmp_path / "checkpoints/tuned/best.pt")["provenance"].items() >= origin["provenance"].items()


def test_a_fine_tuned_run_is_named_after_the_model_that_it_starts_from() -> None:
    assert train.default_run_name("texts/letters.txt", "gpt2") == "letters-gpt2"
    assert train.model_name(Path("checkpoints/gpt2/best.pt")) == "gpt2"
    assert train.model_name(Path("checkpoints/gpt2/step-000400.pt")) == "gpt2"
    assert train.model_name(Path("downloads/base.pt")) == "base"


def test_settings_of_adapters_without_adapters_are_refused(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"--lora-alpha needs adapters; add --lora-rank"):
        run_train("--data", text, "--lora-alpha", 3, "--run", "x")


def test_a_discriminator_is_no_start_also_for_a_dry_run(run_train, text: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = GPT(ModelConfig(vocab_size=257, context_length=32, n_layer=1, n_head=2, n_embd=16))
    save_checkpoint(
        tmp_path / "mood.pt", model_config=model.config, state_dict=model.state_dict(),
        tokenizer=ByteTokenizer().state(), provenance={}, kind="discriminator",
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"mood\.pt holds a discriminator, but training starts from a language m"):
        run_train("--data", text, "--init", tmp_path / "mood.pt", "--steps", 1, "--dry-run")


def test_a_setting_that_differs_from_the_default_of_a_resumed_run_says_so(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ("--data", text, "--run", "mine", "--steps", 1, *TINY_FLAGS)
    run_train(*flags)
    with pytest.raises(UserError, match=r"--learning-rate 0\.5 differs from .* which has the default; leave it out"):
        run_train(*flags, "--resume", "--learning-rate", 0.5)


def test_adapters_without_a_trained_model_are_refused(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"--lora-rank trains adapters beside the weights .* name it with --init"):
        run_train("--data", text, "--lora-rank", 2, "--run", "x")


@pytest.mark.parametrize(("steps", "decay", "dropout"), [(4, 0.1, 0.0), (150, 0.4, 0.2)])
def test_a_text_read_many_times_gets_a_strong_weight_decay_and_dropout(  # type: ignore[no-untyped-def]
    run_train, text: Path, tmp_path: Path, steps: int, decay: float, dropout: float
) -> None:
    # Five layers have four times as many numbers as the text has tokens.
    flags = ("--preset", "small", "--steps", steps, "--sample-tokens", 0, *TINY_FLAGS, "--n-layer", 5)
    run_train("--data", text, "--run", "decay", *flags)
    saved = torch.load(tmp_path / "checkpoints/decay" / f"step-{steps:06d}.pt", weights_only=True)
    decided = saved["training_state"]["train_config"]
    assert decided["weight_decay"] == decay
    n_tokens = 0.9 * len(text.read_bytes())
    assert decided["embedding_weight_decay"] == pytest.approx(min(1.6, 0.4 * steps * 128 / n_tokens), rel=0.01)
    assert saved["model_config"]["dropout"] == dropout


def test_fine_tuning_refuses_to_change_the_shape(run_train, text: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_train("--data", text, "--run", "base", "--steps", 1, *TINY_FLAGS)
    with pytest.raises(UserError, match="--n-layer cannot change a trained model"):
        run_train("--data", text, "--init", tmp_path / "checkpoints/base/best.pt", "--n-layer", 3, "--run", "x")


def test_the_command_that_repeats_a_timed_run_is_printed(run_train, text: Path) -> None:  # type: ignore[no-untyped-def]
    said = run_train("--data", text, "--run", "timed", "--minutes", "0.2", *TINY_FLAGS)
    (repeat,) = [line for line in said.splitlines() if line.startswith("repeat")]
    assert "--minutes" not in repeat
    run_train(*shlex.split(repeat)[3:])
    logs = [train.CHECKPOINTS / run / "metrics.jsonl" for run in ("timed", "timed-again")]
    first, again = ([json.loads(line).get("loss") for line in log.read_text().splitlines()] for log in logs)
    assert first == again


def test_early_stopping_is_not_taken_for_a_speed_that_was_measured_wrong() -> None:
    plan = Plan(100, 1, 1, 10, 10, "cpu", "fp32", compile=False, threads=1)
    done = RunProgress(step=100, training_seconds=10.0)
    assert misjudged_speed(plan, 14.9, done) == []
    assert "--steps 200 " in misjudged_speed(plan, 20.0, done)[0]
    assert misjudged_speed(plan, 20.0, dataclasses.replace(done, step=40)) == []


def test_a_mistake_that_rank_0_does_not_meet_is_said_by_the_process_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "RANK_0_SPEAKS_SECONDS", 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(sys, "argv", ["train.py", "--stepps", "3"])
    with pytest.raises(UserError):
        train.main_beside_rank_0()
    assert capsys.readouterr().err.startswith("train.py: process 3: unknown option '--stepps' (did you mean --steps?)")


def test_a_speed_that_was_measured_far_too_low_is_told_at_the_end(  # type: ignore[no-untyped-def]
    run_train, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "measure_speed", lambda *_: Speed(micro_batch=10, optimizer=0, evaluation=1))
    monkeypatch.setattr(train, "STARTED", time.monotonic())  # not when the first of these tests was collected
    said = run_train("--data", text, "--run", "timed", "--minutes", 1, *TINY_FLAGS)
    lines = (train.CHECKPOINTS / "timed" / "metrics.jsonl").read_text().splitlines()
    *_, last = (line for line in map(json.loads, lines) if "loss" in line)
    (notice,) = [line for line in said.splitlines() if line.startswith("notice")]
    assert "was the machine busy then?" in notice
    # As many real steps as fill the time that these were expected to take, ten seconds each.
    n_steps = int(notice.split("--steps ")[1].split()[0])
    assert n_steps * last["seconds"] / last["step"] == pytest.approx(last["step"] * 10, rel=0.1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "minni"], "did you mean mini"),
        (["--tokenizer", "bpe"], "bpe:4096"),
        (["--n-embd", "100", "--n-head", "7"], "multiple of --n-head"),
        (["--steps", "3", "--minutes", "3"], "give one of them"),
        (["--run", "../outside"], "name of one folder"),
        (["--run", ""], "name of one folder"),
        (["--data", "", "--tokenizer", "byte"], "--data is empty"),
        (["--init", "base.pt", "--preset", "nano"], "--preset cannot change a trained model"),
        (["--init", "base.pt", "--tokenizer", "byte"], "--tokenizer cannot change a trained model"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--data", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_a_mistake_costs_one_line(flags: list[str], words: str) -> None:
    result = subprocess.run(
        [sys.executable, PROJECT / "train.py", *flags], capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") <= 3
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_mistakes_and_help_are_answered_before_torch_loads() -> None:
    script = (
        "import sys; sys.argv = ['train.py', '--preset', 'nothing']\n"
        "import train\n"
        "try: train.main()\n"
        "except ValueError: pass\n"
        "train.build_parser().format_help()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=True)
