"""SIGINT and SIGTERM at any moment: the step is finished, everything saved, the command to go on printed."""

import dataclasses
import functools
import importlib
import os
import pkgutil
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import EXIT_INTERRUPTED, EXIT_TERMINATED, UserError
from data.prepare import prepare_corpus
from model import durable_files
from model.checkpoint import load_checkpoint
from model.checkpoint_choice import step_checkpoints
from training.commands import repeating, resuming, shown
from training.config import TrainConfig
from training.distributed import Workers
from training.parallel import LossFunction
from training.prepared_run import Request
from training.start import start_training

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

PROJECT = Path(__file__).parents[2]
EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
STEPS = 30


@pytest.fixture
def request_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    prepare_here = functools.partial(prepare_corpus, cache_folder=tmp_path / "tokens")
    monkeypatch.setattr("training.prepared_run.prepare_corpus", prepare_here)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. a dog ran to the old mill. " * 60, encoding="utf-8")
    typed = {
        "data": str(text),
        "tokenizer": "byte",
        "steps": STEPS,
        "threads": 1,
        "compile": "off",
        "sample_tokens": 0,
        "evaluate_every_steps": 5,
        "save_every_steps": 3,
    }
    return Request(
        train_config=TrainConfig(**typed),  # type: ignore[arg-type]
        typed=typed,
        preset="nano",
        model_overrides={"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 16, "bigram_rows": 32},
        run_path=tmp_path / "run",
        resume=True,
        overwrite=False,
        dry_run=False,
        init=None,
        command=["python", "train.py", "--data", str(text)],
        started=time.monotonic(),
    )


def start(request: Request, log: Path) -> int:
    """Train in a forked child, which ends as `run_program` would end it; returns its process id."""
    importlib.import_module("torch._dynamo")  # or every child would load it for seconds at its first step
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        start_training(request)
        code = 0
    except UserError as error:
        os.write(2, f"{error}\n".encode())
        code = error.exit_code
    except BaseException as error:  # noqa: BLE001 - a forked child must not run on into pytest
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint, −1 without any; each must be loadable."""
    found = step_checkpoints(run)
    for _, path in found:
        load_checkpoint(path)
    return found[0][0] if found else -1


def test_a_signal_at_any_moment_ends_the_run_in_order_and_the_next_start_goes_on(
    request_to_train: Request, tmp_path: Path
) -> None:
    source, log, request = random.Random(1), tmp_path / "log", request_to_train
    started = time.monotonic()
    assert wait(start(dataclasses.replace(request, run_path=tmp_path / "unbroken"), log)) == 0, log.read_text()
    duration = time.monotonic() - started
    seen = set()
    for number in range(10):
        kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
        before = newest_step(request.run_path)
        child = start(request, log)
        time.sleep(source.uniform(0.02, 0.5 * duration))
        os.kill(child, kind)
        code, said = wait(child), log.read_text()
        seen.add(code)
        if code == 0:  # it was ready before the signal came
            break
        if code == -kind:
            continue  # it came before anything had begun, as for any program
        assert code == EXIT_CODES[kind], said
        last = said.splitlines()[-1]
        stopped = re.search(rf"stopped and saved at step (\d+) of {STEPS}; go on with: (.*)", last)
        if stopped:
            assert newest_step(request.run_path) == int(stopped[1]) > before
            assert stopped[2] == f"python train.py --data {request.train_config.data} --resume"
        elif last.startswith("interrupted after the last step, which is saved; go on with: "):
            assert newest_step(request.run_path) == STEPS
        else:
            assert last.endswith(f"nothing is lost; go on with: python train.py --data {request.train_config.data}")
            assert newest_step(request.run_path) == before
    assert wait(start(request, log)) == 0, log.read_text()
    assert seen & set(EXIT_CODES.values())
    ended, unbroken = (
        load_checkpoint(run / f"step-{STEPS:06d}.pt") for run in (request.run_path, tmp_path / "unbroken")
    )
    assert all(map(torch.equal, ended.state_dict.values(), unbroken.state_dict.values()))


PHASES = {
    # Where the signal comes, and at which call there; the step after which the run has stopped, −1 for none at all.
    "preparation": ("training.prepared_run.prepare_corpus", 1, -1),
    "speed measurement": ("training.preflight.measure_speed", 1, -1),
    "building the model": ("training.start.starting_model", 1, -1),
    "the first forward pass, which compiles": ("model.gpt.GPT.loss", None, 1),
    "evaluation": ("training.trainer.evaluate", 1, 6),
    "a sample": ("training.samples.Sampler.show", 1, 6),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_says_what_is_saved_and_how_to_go_on(
    request_to_train: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    place, call, step = PHASES[phase]
    owner, _, name = place.rpartition(".")
    work, calls = pkgutil.resolve_name(place), []

    def work_and_be_told_to_stop(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        trains = (request_to_train.run_path / "step-000000.pt").exists()  # what came before measured the speed
        if len(calls) == call or (call is None and trains):
            os.kill(os.getpid(), signal.SIGTERM)
        return work(*arguments, **settings)

    monkeypatch.setattr(pkgutil.resolve_name(owner), name, work_and_be_told_to_stop)
    assert wait(start(request_to_train, tmp_path / "log")) == EXIT_TERMINATED, (tmp_path / "log").read_text()
    *told, last = (tmp_path / "log").read_text().splitlines()
    command = f"python train.py --data {request_to_train.train_config.data}"
    assert ("ending as soon as this step is done and saved; a second signal ends at once" in told) == (step >= 0)
    if step < 0:
        assert last == f"interrupted before the first step; nothing is lost; go on with: {command}"
    else:
        assert last == f"stopped and saved at step {step} of {STEPS}; go on with: {command} --resume"
    assert newest_step(request_to_train.run_path) == step


def test_a_signal_behind_the_last_step_cuts_the_summary_short(
    request_to_train: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_for_ever(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)

    monkeypatch.setattr("training.summary.counting_bits_per_byte", count_for_ever)
    assert wait(start(request_to_train, tmp_path / "log")) == EXIT_INTERRUPTED
    last = (tmp_path / "log").read_text().splitlines()[-1]
    command = f"python train.py --data {request_to_train.train_config.data} --resume"
    assert last == f"interrupted after the last step, which is saved; go on with: {command}"
    assert newest_step(request_to_train.run_path) == STEPS


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_a_compiler_that_fails_is_an_error_unless_ctrl_c_has_reached_it_too(
    request_to_train: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_interrupted: bool
) -> None:
    compute, typed = LossFunction.__call__, {**request_to_train.typed, "compile": "on"}
    request = dataclasses.replace(request_to_train, train_config=TrainConfig(**typed), typed=typed)

    def fail_in_training(function: LossFunction, *tokens: torch.Tensor) -> torch.Tensor:
        if not (request.run_path / "step-000000.pt").exists():
            return compute(function, *tokens)
        if is_interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("C++ compile error")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    monkeypatch.setattr(LossFunction, "__call__", fail_in_training)
    code = wait(start(request, tmp_path / "log"))
    last = (tmp_path / "log").read_text().splitlines()[-1]
    if is_interrupted:
        assert code == EXIT_INTERRUPTED
        assert last.startswith(f"stopped and saved at step 0 of {STEPS}; go on with: ")
    else:
        assert last == "RuntimeError: C++ compile error"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("compilers", [1, 2], ids=["the run compiles", "its child processes compile"])
@pytest.mark.parametrize("seconds", [0, 2, 8])
def test_ctrl_c_while_the_model_is_compiled_reaches_all_processes_and_still_saves(
    tmp_path: Path, seconds: int, compilers: int
) -> None:
    shutil.copy(PROJECT / "train.py", tmp_path)  # its runs land beside it
    (tmp_path / "text.txt").write_text("the cat sat on the mat. a dog ran to the old mill. " * 60, encoding="utf-8")
    flags = "--tokenizer byte --steps 3 --n-layer 1 --n-head 2 --n-embd 16 --context-length 16 --batch-tokens 64"
    words = ["train.py", "--data", "text.txt", *flags.split(), "--sample-tokens", "0", "--run", "mine"]
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": str(compilers)}
    environment = {**os.environ, **settings, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words, "--compile", "on"], cwd=tmp_path, env=environment, start_new_session=True,
        stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    run = tmp_path / "checkpoints" / "mine"
    while not (run / "step-000000.pt").exists() or not list((tmp_path / "cache").rglob("*.cpp")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    # As a terminal does: to the whole group, the C++ compiler included.
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == EXIT_INTERRUPTED, said
    step = newest_step(run)
    last = said.splitlines()[-1]
    assert last.startswith(f"train.py: stopped and saved at step {step} of 3; go on with: ")
    again = shlex.split(last.partition("go on with: ")[2])
    assert again[-1] == "--resume"
    subprocess.run(again, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert newest_step(run) == 3


def test_a_signal_within_a_save_waits_for_it(
    request_to_train: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, renamed = durable_files.rename, []

    def rename_and_be_told_to_stop(source: Path, target: Path) -> None:
        renamed.append(target)
        if target.name == "step-000003.pt":
            os.kill(os.getpid(), signal.SIGTERM)
        rename(source, target)

    monkeypatch.setattr(durable_files, "rename", rename_and_be_told_to_stop)
    assert wait(start(request_to_train, tmp_path / "log")) == EXIT_TERMINATED
    assert "stopped and saved at step 4" in (tmp_path / "log").read_text()
    assert newest_step(request_to_train.run_path) == 4


def test_a_second_signal_ends_the_run_at_once_and_loses_nothing_announced(
    request_to_train: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = durable_files.rename

    def hang_at_step_3(source: Path, target: Path) -> None:
        if target.name == "step-000003.pt":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        rename(source, target)

    monkeypatch.setattr(durable_files, "rename", hang_at_step_3)
    started = time.monotonic()
    assert wait(start(request_to_train, tmp_path / "log")) == EXIT_INTERRUPTED
    assert time.monotonic() - started < 50
    assert newest_step(request_to_train.run_path) == 0


@pytest.mark.parametrize("typed", [["--overwrite"], ["--resume"], []])
def test_the_command_to_go_on_is_one_that_is_accepted(typed: list[str]) -> None:
    again = resuming(["python", "train.py", *typed, "--steps", "30"])
    assert again == ["python", "train.py", "--steps", "30", "--resume"]  # never both --resume and --overwrite


@pytest.mark.parametrize("length", [["--minutes", "3"], ["--minutes=3"], []])
def test_the_command_that_repeats_a_run_names_its_steps(length: list[str]) -> None:
    # The last --run counts: the run that is there stays.
    assert repeating(["python", "train.py", *length, "--run", "a"], 7, "a") == [
        *("python", "train.py", "--run", "a", "--steps", "7", "--run", "a-again")
    ]


@pytest.mark.parametrize(
    ("workers", "launcher"),
    [
        (Workers(), "/opt/python train.py"),
        (Workers(0, 2, local_world_size=2), "torchrun --nproc-per-node 2 -- train.py"),
        (Workers(0, 16, local_world_size=8), "torchrun --nnodes 2 --nproc-per-node 8 -- train.py"),
    ],
)
def test_a_command_is_shown_as_it_was_started(workers: Workers, launcher: str) -> None:
    words = shown(["/opt/python", "train.py", "--data", "my text"], workers)
    assert words.startswith(f"{launcher} --data 'my text'")
    assert ("on every machine" in words) == ("--nnodes" in words)
