"""What a run has before its first step, from what the user typed or from the run's newest checkpoint.

fresh     corpus, tokenizer → model config → preflight: plan → decays and dropout that fit the epochs
resumed   tokenizer, configs, plan and weights as they were saved; the same corpus, or an error
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from command_line import UserError, config_from_dict, flag_name
from data.prepare import PreparedCorpus, prepare_corpus
from data.sources import open_source
from data.tokenizers.registry import tokenizer_from_state, tokenizer_hash
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, verify_checkpoint
from model.config import DEFAULT_PRESET, ModelConfig, preset_config
from model.cost import block_matrices
from training.config import TrainConfig
from training.distributed import Workers
from training.fine_tuning import fine_tuning
from training.interruption import Interruption
from training.parallel import read_once
from training.plan import Plan
from training.precision import keep_freed_memory
from training.preflight import prepare_plan
from training.recipe import dropout_for, with_decays


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


@dataclass(frozen=True)
class PreparedRun:
    """What training needs."""

    corpus: PreparedCorpus
    model_config: ModelConfig
    train_config: TrainConfig
    plan: Plan
    initial: Checkpoint | None
    """Weights to start from, or None for fresh ones."""
    started_from: str | None
    """SHA-256 of the checkpoint that --init named, or None for fresh weights."""
    expected_seconds: float | None = None
    """What the steps will take at the speed that was measured; None when that was at an earlier start."""


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


def fresh_run(request: Request, device: torch.device, workers: Workers, interruption: Interruption) -> PreparedRun:
    """Corpus, configs and plan of a new run; with --init, tokenizer, model config and weights of that checkpoint."""
    config, initial = request.train_config, None
    _check_parallel(config, workers)
    if request.init is not None:
        initial = read_once(functools.partial(_language_model, request.init), workers, interruption)
    elif config.lora_rank:
        raise UserError("--lora-rank trains adapters beside the weights of a trained model; name it with --init")
    for name in ("lora_alpha", "lora_matrices"):
        if name in request.typed and not config.lora_rank:
            raise UserError(f"{flag_name(name)} needs adapters; add --lora-rank, such as --lora-rank 8")
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
    started_from = None if initial is None else initial.sha256
    return PreparedRun(corpus, model_config, config, preflight.plan, initial, started_from, preflight.seconds_of_steps)


def _language_model(path: Path) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    if checkpoint.kind != "gpt":
        raise CheckpointError(f"{path} holds a {checkpoint.kind}, but training starts from a language model")
    return checkpoint


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
    skipped = corpus.source.skipped
    if skipped:
        more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
        workers.say(f"notice      left out, since they hold no text: {', '.join(skipped[:3])}{more}")
    # Not sooner: what the preparation frees goes back to the system.
    keep_freed_memory()
    return corpus


_MAY_CHANGE = ("parallel", "sample_prompt", "sample_tokens")
"""On the way: how a run is spread and what it shows changes nothing of what it computes."""


def resumed_run(request: Request, checkpoint: Checkpoint, workers: Workers, interruption: Interruption) -> PreparedRun:
    """Configs and plan of the run as they were; a flag that says otherwise is refused."""
    state = checkpoint.training_state
    assert state is not None
    config = config_from_dict(TrainConfig, state["train_config"])
    changes = {name: value for name, value in request.typed.items() if name in _MAY_CHANGE}
    config = dataclasses.replace(config, **changes)
    _check_parallel(config, workers)
    _check_same_settings(request, checkpoint.model_config, config)
    with workers.together(interruption):
        if workers.is_main:
            _check_same_start(request, checkpoint)
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
    workers.say(*_differences(checkpoint, workers))
    workers.say(f"resumed     {checkpoint.path} at step {state['progress']['step']:,} of {plan.n_steps:,}")
    started_from = checkpoint.provenance.get("started_from")
    return PreparedRun(corpus, checkpoint.model_config, config, plan, checkpoint, started_from)


def _check_same_settings(request: Request, model_config: ModelConfig, config: TrainConfig) -> None:
    """Raise UserError for a flag that says otherwise than the run's own configs."""
    of_run = {**vars(model_config), **vars(config)}
    for name, value in {**request.typed, **request.model_overrides}.items():
        if value != of_run[name]:
            ours = "the default" if of_run[name] is None else of_run[name]
            raise UserError(
                f"{flag_name(name)} {value} differs from the run in {request.run_path}, which has {ours}; "
                f"leave it out to go on, or start another run with --run or --overwrite"
            )
    named = _named_config(request, vocab_size=model_config.vocab_size, dropout=model_config.dropout)
    if request.preset and named != model_config:
        raise UserError(
            f"the run in {request.run_path} has another model than --preset {request.preset}; leave that out to go on, "
            f"or start another run with --run or --overwrite"
        )


def _check_same_start(request: Request, checkpoint: Checkpoint) -> None:
    """Raise UserError when --init names another checkpoint than the run began from; it may be gone by now."""
    if request.init is None or not request.init.exists():
        return
    if verify_checkpoint(request.init) != checkpoint.provenance.get("started_from"):
        raise UserError(
            f"--init {request.init} is not what the run in {request.run_path} started from; leave it out to go on, or "
            f"start another run with --run or --overwrite"
        )


def _differences(checkpoint: Checkpoint, workers: Workers) -> list[str]:
    """Notices of what keeps the run from going on bit for bit."""
    state, saved_torch = checkpoint.training_state, checkpoint.provenance.get("versions", {}).get("torch")
    assert state is not None
    differences = []
    if saved_torch != str(torch.__version__):
        differences.append(f"saved with torch {saved_torch}, going on with {torch.__version__}")
    n_processes = state.get("processes", workers.world_size)
    if n_processes != workers.world_size:
        differences.append(f"saved by {n_processes} processes, {workers.world_size} go on")
    return [f"notice      {difference}: not bit for bit" for difference in differences]
