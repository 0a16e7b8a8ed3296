"""What is decided before the first step, and what is said about it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import UserError
from data.prepare import PreparedCorpus
from data.tokenizers.registry import build_tokenizer
from model.config import ModelConfig, preset_config
from model.cost import count_parameters
from tests.training.conftest import PLAN, TINY_MODEL
from training.config import TrainConfig
from training.distributed import Workers
from training.memory import TooLittleMemoryError
from training.precision import choose_precision
from training.preflight import (
    Preflight,
    advice,
    choose_compile,
    choose_micro_batch,
    choose_sequences,
    choose_steps,
    ngram_parameters,
    prepare_plan,
)
from training.speed import Speed

CPU = torch.device("cpu")
TINY = ModelConfig(**TINY_MODEL)


def test_minutes_become_the_steps_that_fit_beside_the_evaluations() -> None:
    speed = Speed(micro_batch=0.1, optimizer=0.05, evaluation=0.5)
    n_steps, every = choose_steps(TrainConfig(minutes=2), speed, 2, Workers(), other_seconds=18.0)
    # 120 s − 10 s gone − 8 s to finish = 102 s; 10 evaluations of 0.5 s leave 97 s for steps of 0.25 s.
    assert n_steps == 388
    assert every == 39


def test_evaluations_take_a_bounded_share_of_the_run() -> None:
    speed = Speed(micro_batch=0.1, optimizer=0.0, evaluation=4.0)
    n_steps, every = choose_steps(TrainConfig(steps=1000), speed, 1, Workers(), other_seconds=0.0)
    assert n_steps == 1000
    assert every == 500  # 8 % of 100 s pay for two of them


def test_given_steps_are_kept() -> None:
    speed = Speed(micro_batch=9.0, optimizer=9.0, evaluation=9.0)
    assert choose_steps(TrainConfig(steps=7), speed, 3, Workers(), other_seconds=500.0)[0] == 7


def test_the_default_batch_grows_with_the_model() -> None:
    small = preset_config("small", vocab_size=2048)
    gpt2 = preset_config("gpt2")
    assert choose_sequences(TrainConfig(), small, Workers()) * small.context_length == 4096
    assert choose_sequences(TrainConfig(), gpt2, Workers()) * gpt2.context_length == 2**16
    assert choose_sequences(TrainConfig(), gpt2, Workers(0, 3)) % 3 == 0


def test_batch_tokens_that_do_not_divide_name_a_size_that_does() -> None:
    with pytest.raises(UserError, match=r"--batch-tokens \(100\) must be a multiple .* \(32\); try --batch-tokens 96"):
        choose_sequences(TrainConfig(batch_tokens=100), TINY, Workers(0, 2))


def test_a_model_that_cannot_fit_is_refused_before_it_is_built() -> None:
    huge = preset_config("llama2-7b", n_layer=1000, n_embd=65536, n_head=64)
    with pytest.raises(TooLittleMemoryError, match=r"needs about [\d.]+ GB .* a smaller --preset") as error:
        choose_micro_batch(TrainConfig(), huge, CPU, "fp32", 1, Workers())
    assert error.value.exit_code == 6


@pytest.mark.parametrize(
    ("preset", "line"),
    [
        ("mini-llama", "export      possible: python convert.py export"),
        ("gpt2", "export      possible: python convert.py export"),
        (
            "mini",
            "export      not possible: other programs have no feed_forward relu_squared, qk_norm, n-gram embeddings; "
            "--preset mini-llama can be exported",
        ),
    ],
)
def test_whether_the_model_can_be_exported_is_said_before_training(
    preset: str, line: str, corpus: PreparedCorpus
) -> None:
    config = preset_config(preset, vocab_size=257, n_layer=1, n_embd=16, n_head=2, context_length=16)
    preflight = Preflight(PLAN, config, corpus, memory_bytes=0, tokens_per_second=1.0, seconds=1.0)
    (said,) = [said for said in preflight.lines() if said.startswith("export")]
    assert said.startswith(line)


@pytest.mark.parametrize(
    ("text", "overrides", "line"),
    [
        ("abc", {}, "export      possible: python convert.py export --help"),
        (
            "abc 从前",
            {},
            "export      possible: python convert.py export --to hf; not --to gguf: llama.cpp has no single token for "
            "'从'; train with --tokenizer byte or bpe:N",
        ),
        (
            "abc",
            {"feed_forward": "gelu"},
            "export      possible: python convert.py export --to hf; not --to gguf: feed_forward gelu (llama.cpp has "
            "its tanh approximation, gelu_tanh)",
        ),
    ],
)
def test_what_only_llama_cpp_cannot_run_is_said_before_training(
    text: str, overrides: dict[str, Any], line: str, corpus: PreparedCorpus
) -> None:
    tokenizer = build_tokenizer("char", lambda: iter([text]), len(text))
    config = preset_config("gpt2", vocab_size=16, n_layer=1, n_embd=16, n_head=2, context_length=16, **overrides)
    preflight = Preflight(
        PLAN, config, dataclasses.replace(corpus, tokenizer=tokenizer), memory_bytes=0, tokens_per_second=1.0, seconds=1
    )
    assert line in preflight.lines()


def test_measuring_touches_neither_the_random_state_nor_a_file(corpus: PreparedCorpus, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state, files = torch.get_rng_state(), sorted(tmp_path.rglob("*"))
    preflight = prepare_plan(TrainConfig(steps=5), TINY, corpus, CPU, Workers(), elapsed_seconds=lambda: 0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(tmp_path.rglob("*")) == files
    assert preflight.plan.n_steps == 5
    text = "\n".join(preflight.lines())
    for fact in (f"{corpus.n_training_tokens:,}", f"{count_parameters(TINY):,}", "5 steps", "tokens/s"):
        assert fact in text


@pytest.mark.parametrize(
    ("n_parameters", "n_tokens", "epochs", "words"),
    [
        (40_000_000, 120_000, 10, "40.0M parameters on 120,000 tokens will memorise them"),
        (1_000_000, 200_000, 100, "100 epochs over the same 200,000 tokens"),
        (4_000_000, 10**9, 0.01, "reads only 1.0% of the corpus"),
    ],
)
def test_advice_names_what_does_not_fit(n_parameters: int, n_tokens: int, epochs: float, words: str) -> None:
    (line,) = advice(n_parameters, n_tokens, epochs)
    assert words in line
    assert "try" in line


def test_the_shipped_default_needs_no_advice() -> None:
    mini = preset_config("mini", vocab_size=2048)
    n_tokens = 214_717  # the English tales in 2,048 tokens (data/tales)
    for epochs in (0.5, 10, 30):
        assert advice(count_parameters(mini) - ngram_parameters(mini), n_tokens, epochs) == []


def test_only_long_runs_are_compiled_unless_asked() -> None:
    assert not choose_compile("auto", CPU, 180)
    assert choose_compile("on", CPU, 1)
    assert not choose_compile("off", CPU, 10**6)


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_it=has_it: {"avx512_bf16": has_it})
        assert choose_precision("auto", CPU) == expected
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("fp32", CPU) == "fp32"


def test_a_given_micro_batch_never_exceeds_the_share_of_a_process() -> None:
    config = dataclasses.replace(TrainConfig(), micro_batch_size=64)
    assert choose_micro_batch(config, TINY, CPU, "fp32", 8, Workers(0, 2))[0] == 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (60, r"finished at about \d\d:\d\d:\d\d \(in 60 s\)"),
        (3 * 86_400, r"finished at about \d{4}-\d\d-\d\d \d\d:\d\d \(in 259,200 s\)"),
        (1e300, r"finished not in this century \("),
    ],
)
def test_a_run_of_days_says_the_day_of_its_end(corpus: PreparedCorpus, seconds: float, words: str) -> None:
    config = ModelConfig(vocab_size=corpus.tokenizer.vocab_size, context_length=4, n_layer=1, n_head=1, n_embd=4)
    preflight = Preflight(PLAN, config, corpus, memory_bytes=0, tokens_per_second=1.0, seconds=seconds)
    assert re.search(words, "\n".join(preflight.lines()))
