"""From what the user asked for to a finished run: corpus, model, plan, trainer, summary.

    request → run folder, locked → corpus, tokenizer → model config → preflight: plan → model → Trainer.run → summary

A resumed run takes tokenizer, configs, plan, weights and training state from its newest good checkpoint instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from command_line import UserError, config_from_dict, flag_name
from data.prepare import PreparedCorpus, prepare_corpus
from data.sources import open_source
from data.tokenizers.registry import tokenizer_from_state, tokenizer_hash
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import DEFAULT_PRESET, ModelConfig, preset_config
from model.cost import block_matrices
from training.commands import repeating, resuming, shown
from training.config import TrainConfig
from training.distributed import Workers, join_workers, local_device
from training.fine_tuning import fine_tuning, starting_model
from training.interruption import InterruptedRunError, Interruption
from training.memory import shortage_explained
from training.parallel import read_once
from training.plan import Plan
from training.precision import keep_freed_memory
from training.preflight import prepare_plan
from training.recipe import dropout_for, with_decays
from training.run_state import RunFolder
from training.samples import Sampler
from training.summary import misjudged_speed, summary_lines
from training.trainer import Trainer


@dataclass(frozen=True)
class Request:
    """What the user typed: configs as given, and what to do with the run folder."""

    train_config: TrainConfig
    typed: dict[str, Any]
    """The fields of TrainConfig that were typed, to compare with a resumed run's own."""
    preset: str | None
    """As typed."""
    model_overrides: dict[str, Any]
    run_path: Path
    resume: bool
    overwrite: bool
    dry_run: bool
    init: Path | None
    command: list[str]
    """What was typed: the Python interpreter, train.py and its flags."""
    started: float
    """`time.monotonic()` when the process started."""


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
                prepared = _fresh_run(request, device, workers, interruption)
            else:
                prepared = _resumed_run(request, checkpoint, workers, interruption)
            if run_folder is not None:
                _train(request, prepared, run_folder, checkpoint, workers, interruption)
        except InterruptedRunError as error:
            again = resuming(request.command) if error.has_saved else request.command
            error.args = (f"{error}; go on with: {shown(again, workers)}",)
            raise


@dataclass(frozen=True)
class _Prepared:
    corpus: PreparedCorpus
    model_config: ModelConfig
    train_config: TrainConfig
    plan: Plan
    initial: Checkpoint | None
    """Weights to start from, or None for fresh ones."""
    expected_seconds: float | None = None
    """What the steps will take at the speed that was measured; None when that was at an earlier start."""


@contextlib.contextmanager
def _run_folder(request: Request, workers: Workers) -> Iterator[RunFolder | None]:
    """The locked run folder; None for a dry run, which writes nothing."""
    if request.dry_run:
        yield None
        return
    if not workers.is_main:
        yield RunFolder(request.run_path)
        return
    folder = RunFolder.open(request.run_path, resume=request.resume, overwrite=request.overwrite)
    with folder:
        yield folder


def _check_parallel(config: TrainConfig, workers: Workers) -> None:
    """Raise UserError for what several processes cannot do."""
    if workers.world_size == 1:
        return
    if config.parallel == "fsdp" and config.optimizer == "muon":
        raise UserError(
            "--parallel fsdp cuts every matrix into shards, but --optimizer muon needs it whole; add --optimizer "
            "adamw, or leave --parallel fsdp out while the model fits one device"
        )
    if config.data == "-":
        raise UserError("--data - (standard input) cannot be read by several processes; save the text as a file")


def _newest_checkpoint(
    request: Request, run_folder: RunFolder | None, workers: Workers, interruption: Interruption
) -> Checkpoint | None:
    """What to go on from, the same for all processes."""
    if run_folder is None or not request.resume:
        return None
    return read_once(run_folder.newest_checkpoint, workers, interruption)


def _fresh_run(request: Request, device: torch.device, workers: Workers, interruption: Interruption) -> _Prepared:
    config, initial = request.train_config, None
    _check_parallel(config, workers)
    if request.init is not None:
        initial = read_once(functools.partial(load_checkpoint, request.init), workers, interruption)
    elif config.lora_rank:
        raise UserError("--lora-rank trains adapters beside the weights of a trained model; name it with --init")
    context_length = _context_length(request, initial)
    tokenizer_state = None if initial is None else initial.tokenizer
    corpus = _prepare_corpus(config, context_length, tokenizer_state, workers, interruption)
    if initial is None:
        model_config = _named_config(request, vocab_size=corpus.tokenizer.vocab_size)
    else:
        model_config = initial.model_config
        config = fine_tuning(config, model_config, workers.world_size)
    preflight = prepare_plan(
        config, model_config, corpus, device, workers, elapsed_seconds=lambda: time.monotonic() - request.started
    )
    workers.say(*preflight.lines(), *(f"advice      {advice}" for advice in preflight.advice()))
    config = with_decays(config, preflight.epochs)
    if initial is None and "dropout" not in request.model_overrides:
        numbers_per_token = block_matrices(model_config) / corpus.n_training_tokens
        dropout = dropout_for(preflight.epochs, numbers_per_token, model_config.dropout)
        model_config = dataclasses.replace(model_config, dropout=dropout)
    return _Prepared(corpus, model_config, config, preflight.plan, initial, preflight.seconds_of_steps)


def _context_length(request: Request, initial: Checkpoint | None) -> int:
    if initial is not None:
        return initial.model_config.context_length
    return _named_config(request, vocab_size=1).context_length


def _named_config(request: Request, **overrides: Any) -> ModelConfig:
    """The preset with what was typed beside it, and with `overrides` where nothing was."""
    return preset_config(request.preset or DEFAULT_PRESET, **{**overrides, **request.model_overrides})


def _prepare_corpus(
    config: TrainConfig,
    context_length: int,
    tokenizer_state: dict[str, Any] | None,
    workers: Workers,
    interruption: Interruption,
) -> PreparedCorpus:
    """The corpus, prepared by one process of each machine and then opened by the others there.

    Raises UserError when the machines do not have the same text.
    """

    def prepare() -> PreparedCorpus:
        source = open_source(config.data, text_field=config.text_field, encoding=config.encoding)
        return prepare_corpus(
            source,
            config.tokenizer,
            validation_fraction=config.validation_fraction,
            context_length=context_length,
            progress=workers.is_main and sys.stderr.isatty(),
            tokenizer=None if tokenizer_state is None else tokenizer_from_state(tokenizer_state),
        )

    corpus = workers.one_per_machine_first(prepare, interruption)
    mine = (corpus.corpus_hash, tokenizer_hash(corpus.tokenizer), corpus.n_training_tokens)
    of_main = workers.share(mine)
    with workers.together(interruption):
        if mine != of_main:
            raise UserError(
                f"the corpus {corpus.name} here is not the one of rank 0; copy the same text to every machine, or name "
                f"a folder that all of them share"
            )
    # Not sooner: what the preparation frees goes back to the system.
    keep_freed_memory()
    return corpus


_MAY_CHANGE = ("parallel", "sample_prompt", "sample_tokens")
"""On the way: how a run is spread and what it shows changes nothing of what it computes."""


def _resumed_run(request: Request, checkpoint: Checkpoint, workers: Workers, interruption: Interruption) -> _Prepared:
    """Configs and plan of the run as they were; a flag that says otherwise is refused."""
    state = checkpoint.training_state
    assert state is not None
    config = config_from_dict(TrainConfig, state["train_config"])
    changes = {name: value for name, value in request.typed.items() if name in _MAY_CHANGE}
    config = dataclasses.replace(config, **changes)
    _check_parallel(config, workers)
    of_run = {**vars(checkpoint.model_config), **vars(config)}
    for name, value in {**request.typed, **request.model_overrides}.items():
        if value != of_run[name]:
            raise UserError(
                f"{flag_name(name)} {value} differs from the run in {request.run_path}, which has {of_run[name]}; "
                f"leave it out to go on, or start another run with --run or --overwrite"
            )
    trained = checkpoint.model_config
    if request.preset and _named_config(request, vocab_size=trained.vocab_size, dropout=trained.dropout) != trained:
        raise UserError(
            f"the run in {request.run_path} has another model than --preset {request.preset}; leave that out to go on, "
            f"or start another run with --run or --overwrite"
        )
    plan = config_from_dict(Plan, state["plan"])
    if plan.sequences % workers.world_size:
        raise UserError(
            f"the {plan.sequences} windows of a step of the run in {request.run_path} cannot be divided among "
            f"{workers.world_size} processes; go on with a number of processes that divides {plan.sequences}"
        )
    torch.set_num_threads(plan.threads)
    context_length = checkpoint.model_config.context_length
    corpus = _prepare_corpus(config, context_length, checkpoint.tokenizer, workers, interruption)
    if corpus.corpus_hash != state["corpus_hash"]:
        raise UserError(
            f"the corpus {config.data} has changed since the run in {request.run_path} began, so it cannot go on "
            f"exactly; restore the text, or start another run with --run NAME --init {checkpoint.path}"
        )
    saved_torch = checkpoint.provenance.get("versions", {}).get("torch")
    if saved_torch != str(torch.__version__):
        workers.say(f"notice      saved with torch {saved_torch}, going on with {torch.__version__}: not bit for bit")
    n_processes = state.get("processes", workers.world_size)
    if n_processes != workers.world_size:
        workers.say(f"notice      saved by {n_processes} processes, {workers.world_size} go on: not bit for bit")
    workers.say(f"resumed     {checkpoint.path} at step {state['progress']['step']:,} of {plan.n_steps:,}")
    return _Prepared(corpus, checkpoint.model_config, config, plan, checkpoint)


def _train(
    request: Request,
    prepared: _Prepared,
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
    # The others wait: torchrun expects all processes to end at about the same time.
    workers.say(*workers.on_main(summary))
    if prepared.train_config.steps is None and not request.resume:
        again = repeating(request.command, prepared.plan.n_steps, request.run_path.name)
        workers.say(f"repeat      {shown(again, workers)}")
    if prepared.train_config.steps is None and prepared.expected_seconds is not None:
        workers.say(*misjudged_speed(prepared.plan, prepared.expected_seconds, done))


def _provenance(request: Request, prepared: _Prepared) -> dict[str, Any]:
    corpus = prepared.corpus
    return {
        "corpus": corpus.name,
        "corpus_hash": corpus.corpus_hash,
        "corpus_bytes": corpus.corpus_bytes,
        "training_tokens": corpus.n_training_tokens,
        "command": shlex.join(["python", *request.command[1:]]),  # where Python lies is nobody else's business
        "started_from": None if prepared.initial is None else prepared.initial.sha256,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "tiktoken": version("tiktoken"),
            "tokenizers": version("tokenizers"),
        },
    }
