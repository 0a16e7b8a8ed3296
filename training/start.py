"""From what the user asked for to a finished run: its folder, its parts, the trainer, the summary.

request → run folder, locked → corpus, configs, plan (`prepared_run`) → model → Trainer.run → summary
"""

from __future__ import annotations

import contextlib
import functools
import platform
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from model.checkpoint import Checkpoint
from training.commands import repeating, resuming, shown
from training.distributed import Workers, join_workers, local_device
from training.fine_tuning import starting_model
from training.interruption import InterruptedRunError, Interruption
from training.memory import shortage_explained
from training.parallel import read_once
from training.prepared_run import PreparedRun, Request, fresh_run, resumed_run
from training.run_state import RunFolder
from training.samples import Sampler
from training.summary import misjudged_speed, summary_lines
from training.trainer import Trainer


def start_training(request: Request) -> None:
    """Run what was asked for, to its end. Everything a user can cause is a UserError with its exit code."""
    interruption = Interruption()
    with interruption.watch(), join_workers(request.train_config.device) as workers, contextlib.ExitStack() as stack:
        if workers.world_size > 1:
            interruption.defer()  # the others would wait in vain for a process that ends alone
        try:
            with workers.together(interruption):
                device = local_device(request.train_config.device, workers)
                run_folder = stack.enter_context(_run_folder(request, workers))
            checkpoint = _newest_checkpoint(request, run_folder, workers, interruption)
            if checkpoint is None:
                prepared = fresh_run(request, device, workers, interruption)
            else:
                prepared = resumed_run(request, checkpoint, workers, interruption)
            if run_folder is not None:
                _train(request, prepared, run_folder, checkpoint, workers, interruption)
        except InterruptedRunError as error:
            again = resuming(request.command) if error.has_saved else request.command
            error.args = (f"{error}; go on with: {shown(again, workers)}",)
            raise


@contextlib.contextmanager
def _run_folder(request: Request, workers: Workers) -> Iterator[RunFolder | None]:
    """The locked run folder; None for a dry run, which has none."""
    if request.dry_run:
        yield None
        return
    if not workers.is_main:
        yield RunFolder(request.run_path)
        return
    folder = RunFolder.open(request.run_path, resume=request.resume, overwrite=request.overwrite)
    with folder:
        yield folder


def _newest_checkpoint(
    request: Request, run_folder: RunFolder | None, workers: Workers, interruption: Interruption
) -> Checkpoint | None:
    """What to go on from, the same for all processes."""
    if run_folder is None or not request.resume:
        return None
    return read_once(run_folder.newest_checkpoint, workers, interruption)


def _train(
    request: Request,
    prepared: PreparedRun,
    run_folder: RunFolder,
    resumed: Checkpoint | None,
    workers: Workers,
    interruption: Interruption,
) -> None:
    torch.manual_seed(prepared.train_config.seed)
    model = starting_model(prepared.model_config, prepared.train_config, prepared.initial, resumed=resumed is not None)
    sampler = Sampler(model, prepared.corpus, prepared.train_config, run_folder.samples_path, workers)
    trainer = Trainer(
        model,
        prepared.corpus,
        prepared.train_config,
        prepared.plan,
        run_folder,
        workers=workers,
        interruption=interruption,
        provenance=_provenance(request, prepared),
        show_sample=sampler.show,
    )
    if resumed is not None:
        assert resumed.training_state is not None
        trainer.load_training_state(resumed.training_state)
    interruption.defer(tell=workers.is_main)
    with shortage_explained(trainer.device, prepared.plan.micro_batch_size):
        done = trainer.run()
    summary = functools.partial(
        summary_lines, prepared.corpus, run_folder, done, interpreter=request.command[0], prompt=sampler.prompt
    )
    try:
        # The others wait: torchrun expects all processes to end at about the same time.
        with interruption.at_once() if workers.world_size == 1 else contextlib.nullcontext():
            workers.say(*workers.on_main(summary, interruption))
    except InterruptedRunError as error:
        error.args, error.has_saved = ("interrupted after the last step, which is saved",), True
        raise
    if prepared.train_config.steps is None and not request.resume:
        again = repeating(request.command, prepared.plan.n_steps, request.run_path.name)
        workers.say(f"repeat      {shown(again, workers)}")
    if prepared.train_config.steps is None and prepared.expected_seconds is not None:
        workers.say(*misjudged_speed(prepared.plan, prepared.expected_seconds, done))


def _provenance(request: Request, prepared: PreparedRun) -> dict[str, Any]:
    corpus = prepared.corpus
    return {
        "corpus": corpus.name,
        "corpus_hash": corpus.corpus_hash,
        "corpus_bytes": corpus.corpus_bytes,
        "training_tokens": corpus.n_training_tokens,
        "command": shlex.join(["python", *request.command[1:]]),  # where Python lies is nobody else's business
        "started_from": prepared.started_from,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "tiktoken": version("tiktoken"),
            "tokenizers": version("tokenizers"),
        },
    }
