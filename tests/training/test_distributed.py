"""Several processes compute what one would, end together, and leave one and the same kind of checkpoint.

Processes are forked from a server that has loaded torch already, and joined by gloo as torchrun joins them; torchrun
itself starts the last tests. No GPU is needed, and none is tested here.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.run import get_args_parser

import train
from command_line import UserError, run_program
from data.prepare import PreparedCorpus, prepare_corpus
from data.sources import open_source
from model.checkpoint import StorageError, load_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from tests.training.conftest import CONTEXT_LENGTH, PLAN, SENTENCES, TINY_MODEL
from training.config import TrainConfig
from training.distributed import Workers, join_workers, local_device
from training.evaluation import evaluate
from training.fine_tuning import starting_model
from training.interruption import Interruption
from training.parallel import place
from training.plan import Plan
from training.run_state import RunFolder
from training.trainer import Trainer

PROJECT = Path(train.__file__).parent
PATIENCE_SECONDS = 120
EXACT = 1e-10
"""Float64: sums in another order differ in the last bits only, also after 20 steps."""
SINGLE_PRECISION = 1e-3
"""Largest difference of a weight after 20 steps at a rate of 0.001."""
LOSSES = 0.02
"""Nats between the losses of a step, when Muon iterates in bfloat16 on sums that differ in the last bits."""
CPU = torch.device("cpu")

Work = Callable[..., Any]


class Processes:
    """Some processes that share a run as torchrun would have it; used up when they have ended."""

    def __init__(self, n_processes: int, target: Work, *arguments: Any, machines: int = 1) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.fsdp", "train", "training.start"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pipes, self.processes = [], []
        local_size = n_processes // machines
        for rank in range(n_processes):
            variables = {
                "RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_RANK": rank % local_size,
                "LOCAL_WORLD_SIZE": local_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=target, args=(variables, theirs, *arguments))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def results(self) -> list[Any]:
        """What each process sent, by rank."""
        received = []
        for pipe in self.pipes:
            assert pipe.poll(PATIENCE_SECONDS), "a process hangs"
            received.append(pickle.loads(pipe.recv_bytes()))
        assert self.exit_codes() == [0] * len(self.processes)
        return received

    def exit_codes(self) -> list[int | None]:
        """How each process has ended, by rank."""
        for process in self.processes:
            process.join(PATIENCE_SECONDS)
        return [process.exitcode for process in self.processes]

    def close(self) -> None:
        """End what is still running."""
        for process in self.processes:
            process.kill()
            process.join()


def joined(variables: dict[str, Any], pipe: Any, work: Work, arguments: tuple[Any, ...]) -> None:
    """Run `work(workers, *arguments)` in one of the processes and send what it returns."""
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    with join_workers("cpu") as workers:
        pipe.send_bytes(pickle.dumps(work(workers, *arguments)))


def in_processes(n_processes: int, work: Work, *arguments: Any, machines: int = 1) -> list[Any]:
    """The results of `work(workers, *arguments)` by rank; one process is this one."""
    if n_processes == 1:
        return [work(Workers(), *arguments)]
    with contextlib.closing(Processes(n_processes, joined, work, arguments, machines=machines)) as processes:
        return processes.results()


# ---- the training ------------------------------------------------------------------------------------------------


TWENTY_STEPS = dataclasses.replace(PLAN, n_steps=20, sequences=8, evaluate_every_steps=10, save_every_steps=10)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the Trainer, the same in every process."""

    folder: Path
    run: Path
    config: dict[str, Any]
    resumed_from: Path | None = None
    plan: Plan = TWENTY_STEPS
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: torch.dtype = torch.float64


def prepared(folder: Path) -> PreparedCorpus:
    return prepare_corpus(
        open_source(str(folder / "text.txt")),
        "byte",
        context_length=CONTEXT_LENGTH,
        cache_folder=folder / "tokens",
        progress=False,
    )


@contextlib.contextmanager
def trainer_of(workers: Workers, job: Job) -> Iterator[Trainer]:
    torch.manual_seed(5)
    checkpoint = None if job.resumed_from is None else load_checkpoint(job.resumed_from)
    model_config, train_config = ModelConfig(**{**TINY_MODEL, **job.model}), TrainConfig(**job.config)
    model = starting_model(model_config, train_config, checkpoint, resumed=checkpoint is not None)
    with RunFolder.open(job.run, resume=False, overwrite=True) if workers.is_main else RunFolder(job.run) as run_folder:
        trainer = Trainer(
            model.to(job.dtype),
            prepared(job.folder),
            train_config,
            job.plan,
            run_folder,
            workers=workers,
            interruption=Interruption(),
            provenance={},
            show_sample=lambda step, progress: None,
        )
        if job.dtype == torch.float64 and "muon" in trainer.optimizer._optimizers:
            trainer.optimizer._optimizers["muon"].dtype = torch.float64  # type: ignore[attr-defined]
        if checkpoint is not None:
            assert checkpoint.training_state is not None
            trainer.load_training_state(checkpoint.training_state)
        yield trainer


def trained(workers: Workers, job: Job) -> dict[str, torch.Tensor]:
    with trainer_of(workers, job) as trainer:
        trainer.run()
    return load_checkpoint(job.run / "step-000020.pt").state_dict


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert set(first) == set(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a corpus of 3,000 bytes, prepared."""
    (tmp_path / "text.txt").write_text("".join(SENTENCES[i * i % 3] for i in range(120)), encoding="utf-8")
    prepared(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "muon"}, {}),
        ({"optimizer": "adamw", "parallel": "fsdp"}, {"n_layer": 2}),
        ({"optimizer": "adamw", "parallel": "fsdp"}, {"tied_head": True, "bias": True, "normalization": "layernorm"}),
        pytest.param({"optimizer": "adamw", "lora_rank": 2}, {}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adamw", "parallel": "fsdp", "lora_rank": 2}, {}, marks=pytest.mark.slow),
    ],
    ids=["adamw", "muon", "shards", "shards with a tied head", "adapters", "shards with adapters"],
)
def test_any_number_of_processes_trains_the_same_weights_and_goes_on_where_another_stopped(
    folder: Path, config: dict[str, Any], model: dict[str, Any]
) -> None:
    # Micro-batches of 3 and of 2 windows: the parts over which gradients add up are unequal.
    job = Job(folder, folder / "alone", config, plan=dataclasses.replace(TWENTY_STEPS, micro_batch_size=3), model=model)
    (alone,) = in_processes(1, trained, job)
    both = dataclasses.replace(job, run=folder / "both", plan=TWENTY_STEPS)
    for weights in in_processes(2, trained, both):
        assert largest_difference(alone, weights) < EXACT
    for n_processes in (1, 4):
        resumed = dataclasses.replace(both, run=folder / str(n_processes), resumed_from=both.run / "step-000010.pt")
        for weights in in_processes(n_processes, trained, resumed):
            assert largest_difference(alone, weights) < EXACT


def test_in_single_precision_two_processes_stay_close_to_one(folder: Path) -> None:
    job = Job(folder, folder / "alone", {"optimizer": "adamw"}, dtype=torch.float32)
    (alone,) = in_processes(1, trained, job)
    first, second = in_processes(2, trained, dataclasses.replace(job, run=folder / "both"))
    assert largest_difference(first, second) == 0
    # AdamW divides by the size of a gradient: where that is almost zero, its rounding error decides about a step.
    assert largest_difference(alone, first) < SINGLE_PRECISION


def drawn_numbers(workers: Workers, job: Job) -> list[float]:
    with trainer_of(workers, job) as trainer:
        numbers = []
        for _ in range(2):
            trainer._train_step()
            numbers.append(torch.rand(()).item())
        return numbers


def test_dropout_differs_between_processes_and_between_steps(folder: Path) -> None:
    first, second = in_processes(2, drawn_numbers, Job(folder, folder / "run", {}, model={"dropout": 0.2}))
    assert len({*first, *second}) == 4


def evaluation_of(workers: Workers, folder: Path, parallel: str) -> tuple[float, float]:
    torch.manual_seed(1)
    model = place(GPT(ModelConfig(**TINY_MODEL)), CPU, workers, parallel)
    result = evaluate(model, prepared(folder), device=CPU, precision="fp32", workers=workers, sequences=4)
    return result.loss, result.bits_per_byte


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_shared_evaluation_equals_that_of_one_process(folder: Path, parallel: str) -> None:
    (alone,) = in_processes(1, evaluation_of, folder, "ddp")
    # The validation windows are no multiple of 3 × 4, so some processes have fewer batches.
    for shared in in_processes(3, evaluation_of, folder, parallel):
        assert shared == pytest.approx(alone, rel=1e-6)


# ---- what they agree on ------------------------------------------------------------------------------------------


def failing_in_rank_1(workers: Workers) -> tuple[str, int]:
    try:
        with workers.together():
            if workers.rank == 1:
                raise StorageError("save", Path("there"), OSError(28, "No space left on device"))
    except UserError as error:
        return str(error), error.exit_code
    return "", 0


def test_an_error_of_one_process_is_the_error_of_all() -> None:
    for message, exit_code in in_processes(3, failing_in_rank_1):
        assert exit_code == 4
        assert message.startswith(f"process 1 on {socket.gethostname()}: cannot save there: No space left")


def shared_values(workers: Workers) -> tuple[int, list[int], int, int]:
    rank = workers.rank
    return (workers.share(rank + 7), workers.gather(rank), workers.max(rank, CPU), workers.on_main(lambda: rank + 1))


def test_all_processes_get_the_same_decisions() -> None:
    assert in_processes(3, shared_values) == [(7, [0, 1, 2], 2, 1)] * 3


def first_come(workers: Workers, log: Path) -> bool:
    def work() -> bool:
        was_there = (log / str(workers.rank // 2)).exists()
        (log / str(workers.rank // 2)).touch()
        return was_there

    return workers.one_per_machine_first(work, Interruption())


def test_one_process_of_each_machine_prepares_before_the_others(tmp_path: Path) -> None:
    assert in_processes(4, first_come, tmp_path, machines=2) == [False, True, False, True]


def test_every_process_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cuda", "auto"):
        assert local_device(name, Workers(5, 6, local_rank=1, local_world_size=2)) == torch.device("cuda", 1)
    assert chosen == [1, 1]
    assert local_device("cpu", Workers(5, 6, local_rank=1, local_world_size=2)) == CPU
    with pytest.raises(UserError, match=r"started 3 processes on this machine, which has 2 GPUs.*--nproc-per-node 2"):
        local_device("cuda", Workers(2, 3, local_rank=2, local_world_size=3))
    for name in ("cuda:1", "mps"):
        with pytest.raises(UserError, match=rf"--device {name} is one device, but torchrun started 2 processes"):
            local_device(name, Workers(1, 2, local_rank=1, local_world_size=2))


# ---- train.py, in several processes ------------------------------------------------------------------------------

FLAGS = (
    *("--tokenizer", "byte", "--context-length", 16, "--n-layer", 2, "--n-head", 2, "--n-embd", 16),
    *("--bigram-rows", 32, "--trigram-rows", 0, "--batch-tokens", 128, "--precision", "fp32", "--threads", 1),
    *("--sample-tokens", 4, "--sample-prompt", "the", "--device", "cpu", "--run-name", "mine"),
)
STEPS = ("--steps", 8, "--save-every-steps", 4, "--evaluate-every-steps", 4)


def run_script(variables: dict[str, Any], pipe: Any, folder: Path, flags: tuple[object, ...]) -> None:
    """Be `python train.py FLAGS` in one of the processes, with its output in a file."""
    os.environ.update({name: str(value) for name, value in variables.items()})
    rank = variables["RANK"]
    output = os.open(folder / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    train.CHECKPOINTS = folder / "checkpoints"
    sys.argv = ["train.py", "--data", str(folder / "text.txt"), *map(str, flags)]
    if variables["WORLD_SIZE"] == 1:
        for name in variables:
            del os.environ[name]
    run_program(train.main, quiet=rank != 0)


def start_script(n_processes: int, folder: Path, *flags: object) -> Processes:
    return Processes(n_processes, run_script, folder, (*FLAGS, *flags))


def run_train(n_processes: int, folder: Path, *flags: object, exit_code: int = 0) -> str:
    """Run train.py to its end in several processes; what rank 0 said, the others having said nothing."""
    with contextlib.closing(start_script(n_processes, folder, *flags)) as processes:
        exit_codes = processes.exit_codes()
    said = [(folder / f"output-{rank}").read_text(encoding="utf-8") for rank in range(n_processes)]
    assert exit_codes == [exit_code] * n_processes, said
    assert said[1:] == [""] * (n_processes - 1)
    return said[0]


def final_state(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The last weights of a run, and the loss of each of its steps."""
    lines = [json.loads(line) for line in (folder / "checkpoints/mine/metrics.jsonl").read_text().splitlines()]
    checkpoint = load_checkpoint(folder / "checkpoints/mine/step-000008.pt")
    return checkpoint.state_dict, [line["loss"] for line in lines if "loss" in line]


def test_a_run_of_two_processes_goes_on_with_one_two_and_four(folder: Path) -> None:
    said = run_train(2, folder, *STEPS)
    assert "2 processes on cpu" in said
    assert "generate.py --checkpoint" in said
    weights, losses = final_state(folder)
    for n_processes in (1, 2, 4):
        (folder / "checkpoints/mine/step-000008.pt").unlink()
        said = run_train(n_processes, folder, *STEPS, "--resume")
        assert "step-000004.pt at step 4 of 8" in said
        assert (f"saved by 2 processes, {n_processes} go on: not bit for bit" in said) == (n_processes != 2)
        resumed_weights, resumed_losses = final_state(folder)
        assert len(resumed_losses) == 8
        assert resumed_losses == pytest.approx(losses, abs=LOSSES)
        if n_processes == 2:
            assert largest_difference(weights, resumed_weights) == 0


def test_a_sharded_run_is_read_and_goes_on_as_any_other(folder: Path) -> None:
    flags = ("--optimizer", "adamw", "--parallel", "fsdp")
    run_train(2, folder, *STEPS, *flags)
    checkpoint = load_checkpoint(folder / "checkpoints/mine/best.pt")
    plain = torch.load(checkpoint.path, weights_only=True)["state_dict"]
    assert all(type(tensor) is torch.Tensor for tensor in plain.values())
    loss = evaluate(checkpoint.build_model(), prepared(folder), device=CPU, precision="fp32", workers=Workers()).loss
    assert loss == pytest.approx(checkpoint.provenance["best_validation"]["loss"], rel=1e-5)
    weights, _ = final_state(folder)
    (folder / "checkpoints/mine/step-000008.pt").unlink()
    run_train(2, folder, *STEPS, "--optimizer", "adamw", "--parallel", "ddp", "--resume")
    assert largest_difference(weights, final_state(folder)[0]) < SINGLE_PRECISION


@pytest.mark.parametrize(
    ("flags", "exit_code", "words"),
    [
        (("--init", "missing.pt"), 2, "--context-length cannot change a trained model"),
        (("--parallel", "fsdp", "--optimizer", "muon"), 2, "add --optimizer adamw"),
        (("--batch-tokens", "16"), 2, "try --batch-tokens 32"),
        (("--steps", "-1"), 2, "--steps must be"),
    ],
)
def test_a_mistake_ends_all_processes_with_one_line(
    folder: Path, flags: tuple[str, ...], exit_code: int, words: str
) -> None:
    (line,) = run_train(2, folder, *flags, exit_code=exit_code).splitlines()
    assert line.startswith("train.py: ")
    assert words in line


def wait_for_steps(folder: Path, n_steps: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    metrics = folder / "checkpoints" / "mine" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < n_steps:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_to_one_process_stops_and_saves_all(folder: Path) -> None:
    with contextlib.closing(start_script(2, folder, "--steps", 10**6, "--compile", "off")) as processes:
        wait_for_steps(folder, 3)
        os.kill(processes.processes[1].pid or 0, signal.SIGINT)
        assert processes.exit_codes() == [130, 130]
    assert (folder / "output-1").read_text() == ""
    last = (folder / "output-0").read_text().splitlines()[-1]
    step = int(last.split("stopped and saved at step ")[1].split()[0])
    saved = load_checkpoint(folder / "checkpoints" / "mine" / f"step-{step:06d}.pt").training_state
    assert saved is not None
    assert saved["progress"]["step"] == step


def test_a_lost_process_ends_the_others_with_one_line(folder: Path) -> None:
    with contextlib.closing(start_script(2, folder, "--steps", 10**6, "--compile", "off")) as processes:
        wait_for_steps(folder, 3)
        os.kill(processes.processes[1].pid or 0, signal.SIGKILL)
        assert processes.exit_codes() == [1, -signal.SIGKILL]
    said = (folder / "output-0").read_text()
    assert "Traceback" not in said
    assert "lost contact with another process" in said.splitlines()[-1]


# ---- torchrun itself ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torchrun(folder: Path, *flags: object, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """`torchrun --nproc-per-node 2 train.py` on a copy of the script, so that its runs land in the test's folder."""
    shutil.copy(PROJECT / "train.py", folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", str(folder / "train.py")]
    command += ["--data", str(folder / "text.txt"), *map(str, (*FLAGS, *flags))]
    # Python runs the folder's sitecustomize.py, if a test has put one there, before the script.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)


def processes_under(parent: int) -> dict[int, int]:
    """The workers of a torchrun, rank → process id."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(value.removeprefix(b"RANK=")) for value in variables if value.startswith(b"RANK=")]
        found.update({rank: int(child) for rank in ranks})
    return found


def test_torchrun_hands_on_every_flag_but_the_short_run() -> None:
    """argparse looks for abbreviations of torchrun's own options also behind the name of the script."""
    parser = get_args_parser()
    for action in train.build_parser()._actions:
        for flag in {*action.option_strings} - {"-h", "--help", "--run"}:
            words = ["--nproc-per-node", "2", "train.py", flag, "value"]
            assert parser.parse_args(words).training_script_args == [flag, "value"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--nproc-per-node", "2", "train.py", "--run", "mine"])
    assert parser.parse_args(["--", "train.py", "--run", "mine"]).training_script_args == ["--run", "mine"]


def test_the_commands_of_the_page_on_scaling_are_understood() -> None:
    page = (PROJECT / "docs" / "scaling.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"^(?:\w+=1 )?torchrun (.*?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = get_args_parser().parse_args(shlex.split(command))
        assert arguments.training_script == "train.py"
        train.build_parser().parse(arguments.training_script_args)


def test_under_torchrun_a_mistake_is_said_once_also_when_rank_0_is_the_last_to_see_it(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text('import os, time\nif os.environ.get("RANK") == "0": time.sleep(1)\n')
    with torchrun(folder, "--steps", -1) as process:
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("train.py: ")]
    assert "--steps must be" in line


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds torchrun's workers under /proc")
def test_torchrun_restarts_after_a_kill_and_ends_as_if_nothing_had_happened(folder: Path) -> None:
    # 300 steps last about 5 seconds, so that the kill comes in the middle.
    flags = ("--steps", 300, "--save-every-steps", 10, "--evaluate-every-steps", 150)
    with torchrun(folder, *flags, "--resume", restarts=1) as process:
        wait_for_steps(folder, 30)
        killed = processes_under(process.pid)
        os.kill(killed[1], signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, said
    assert "resumed" in said
    restarted = load_checkpoint(folder / "checkpoints/mine/step-000300.pt")
    shutil.move(folder / "checkpoints", folder / "restarted")
    run_train(2, folder, *flags)
    unbroken = load_checkpoint(folder / "checkpoints/mine/step-000300.pt")
    assert largest_difference(restarted.state_dict, unbroken.state_dict) == 0
