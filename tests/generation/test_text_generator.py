"""The whole path from prompts to text, on tiny models with random weights."""

import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from command_line import UserError
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.text_generator import Precision, TextGenerator, choose_device, on_device
from model.checkpoint import CheckpointError, save_checkpoint
from model.gpt import GPT
from tests.generation.conftest import BuildModel

BYTES = ByteTokenizer()
END = BYTES.end_of_text


def texts(generator: TextGenerator, prompts: str | list[str], **settings: Any) -> list[str]:
    return [result.text for result in generator.generate(prompts, SamplingConfig(**settings))]


def make_certain(model: GPT, following: dict[int, int], vocab_size: int = 257) -> GPT:
    """Make a model whose next token is decided by the last one alone: `following[last]`, else the end of text."""
    n_embd = model.config.n_embd
    assert n_embd >= vocab_size
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.token_embedding.weight.copy_(torch.eye(vocab_size, n_embd))
        model.final_norm.weight.fill_(1.0)
        for token_id in range(vocab_size):
            model.head.weight[following.get(token_id, END), token_id] = 5.0
    return model


@pytest.fixture
def certain_generator(build_model: Callable[..., GPT]) -> Callable[[str], TextGenerator]:
    """Builds a generator that writes a given text after its first character, each byte following from the last."""

    def build(text: str) -> TextGenerator:
        raw = text.encode()
        assert len(set(raw)) == len(raw), "each byte decides the next one, so none may come twice"
        model = build_model(
            n_embd=260, n_layer=1, n_head=1, tied_head=False, positions="rotary", bias=False, normalization="rmsnorm"
        )
        return TextGenerator(make_certain(model, dict(pairwise(raw))), BYTES)

    return build


def test_greedy_text_is_the_repeated_argmax_of_the_model(generator: TextGenerator) -> None:
    tokens = BYTES.encode("ab")
    for _ in range(10):
        with torch.no_grad():
            tokens.append(int(generator.model(torch.tensor([tokens]))[0, -1].argmax()))
    (result,) = generator.generate("ab", SamplingConfig(temperature=0, max_new_tokens=10, valid_utf8=False))
    assert result.token_ids == tokens[2:]
    assert result.reason == "max_new_tokens"


def test_log_probabilities_are_those_of_the_model_before_any_processor(generator: TextGenerator) -> None:
    (result,) = generator.generate("ab", SamplingConfig(temperature=0.5, top_k=3, max_new_tokens=10))
    tokens = BYTES.encode("ab") + result.token_ids
    with torch.no_grad():
        expected = generator.model(torch.tensor([tokens[:-1]]))[0, 1:].log_softmax(-1)
    of_tokens = expected.gather(1, torch.tensor(result.token_ids).unsqueeze(1)).squeeze(1)
    assert torch.tensor(result.log_probabilities).allclose(of_tokens, atol=1e-5)


@pytest.mark.parametrize("variant", ["gpt2", "llama", "ours"])
def test_a_sample_is_the_same_text_whatever_the_batch_size(build_model: Callable[..., GPT], variant: str) -> None:
    generator = TextGenerator(build_model(variant), BYTES)
    settings: dict[str, Any] = {"num_samples": 5, "max_new_tokens": 60, "temperature": 1.0, "stop": ("e",), "seed": 3}
    prompts = ["a longer prompt", "x"]
    together = texts(generator, prompts, **settings)
    assert len(set(together)) == 10
    for batch_size in (1, 3):
        assert texts(generator, prompts, batch_size=batch_size, **settings) == together


def test_the_same_seed_repeats_and_another_differs(generator: TextGenerator) -> None:
    assert texts(generator, "a", seed=1) == texts(generator, "a", seed=1) != texts(generator, "a", seed=2)


def test_pieces_join_to_the_decoded_tokens(generator: TextGenerator) -> None:
    settings = SamplingConfig(num_samples=5, max_new_tokens=80, temperature=2, valid_utf8=False)
    results = generator.generate(["武", ""], settings)
    assert any("\ufffd" in result.text for result in results)
    assert [result.text for result in results] == [BYTES.decode(result.token_ids) for result in results]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 30])
@pytest.mark.parametrize("settings", [{}, {"force_end": True}, {"temperature": 0.0}, {"top_k": 2}], ids=str)
def test_a_text_is_valid_utf8_wherever_it_is_cut(
    generator: TextGenerator, settings: dict[str, Any], max_new_tokens: int
) -> None:
    sampling = SamplingConfig(num_samples=20, max_new_tokens=max_new_tokens, **settings)
    for result in generator.generate("武", sampling):
        assert "\ufffd" not in result.text
        assert BYTES.decode(result.token_ids).encode() == bytes(token for token in result.token_ids if token != END)
        assert result.reason in ("max_new_tokens", "end_of_text")


def test_a_text_ends_at_end_of_text_and_says_so(certain_generator: Callable[[str], TextGenerator]) -> None:
    (result,) = certain_generator("abc武").generate("a", SamplingConfig())
    assert (result.text, result.reason) == ("bc武", "end_of_text")
    assert result.token_ids == [*BYTES.encode("bc武"), END]


def test_a_stop_string_is_cut_and_never_shown_in_part(certain_generator: Callable[[str], TextGenerator]) -> None:
    generator = certain_generator("abc武def")
    pieces = list(generator.stream("a", SamplingConfig(stop=("武de",))))
    assert [piece.text for piece in pieces] == ["b", "c", "", "", "", "", ""]
    assert pieces[-1].reason == "stop_string"
    (kept,) = generator.generate("a", SamplingConfig(stop=("武de",), keep_stop=True))
    assert kept.text == "bc武de"


def test_the_beginning_of_a_stop_string_is_given_when_the_text_ends_for_another_reason(
    certain_generator: Callable[[str], TextGenerator],
) -> None:
    (result,) = certain_generator("abcd").generate("a", SamplingConfig(stop=("cx", "dx")))
    assert (result.text, result.reason) == ("bcd", "end_of_text")


def test_rows_stop_one_by_one(certain_generator: Callable[[str], TextGenerator]) -> None:
    results = certain_generator("abcdefgh").generate(["a", "g", "e", "h"], SamplingConfig())
    assert [result.text for result in results] == ["bcdefgh", "h", "fgh", ""]
    assert {result.reason for result in results} == {"end_of_text"}


def test_an_empty_prompt_begins_a_new_text(generator: TextGenerator) -> None:
    (result,) = generator.generate("", SamplingConfig(temperature=0, max_new_tokens=5))
    with torch.no_grad():
        assert result.token_ids[0] == generator.model(torch.tensor([[END]]))[0, -1].argmax()


def test_a_tokenizer_that_begins_texts_with_a_token_gets_it_before_the_prompt(build_model: Callable[..., GPT]) -> None:
    class BeginningBytes(ByteTokenizer):
        begin_of_text: int | None = END

    assert TextGenerator(build_model(), BeginningBytes()).encode_prompt("ab") == [END, 97, 98]


def test_a_prompt_ten_times_the_context_is_cropped_with_a_notice(build_model: Callable[..., GPT]) -> None:
    notices: list[str] = []
    generator = TextGenerator(build_model(context_length=16), BYTES, notify=notices.append)
    long = "x" * 144 + "0123456789abcdef"
    assert texts(generator, long, temperature=0) == texts(generator, "0123456789abcdef", temperature=0)
    assert notices == [
        "the prompt has 160 tokens, but the model sees only 16 at once: the first 144 are left out",
    ]


def test_no_new_tokens_is_an_empty_text(generator: TextGenerator) -> None:
    (result,) = generator.generate("a", SamplingConfig(max_new_tokens=0))
    assert (result.text, result.token_ids, result.reason) == ("", [], "max_new_tokens")


def test_top_k_above_the_vocabulary_changes_nothing(generator: TextGenerator) -> None:
    assert texts(generator, "a", top_k=10**6) == texts(generator, "a")


def test_top_k_1_and_temperature_0_agree(generator: TextGenerator) -> None:
    assert texts(generator, "a", top_k=1) == texts(generator, "a", temperature=0)


def test_a_tiny_temperature_is_greedy_and_a_huge_one_still_draws(generator: TextGenerator) -> None:
    assert texts(generator, "a", temperature=1e-300) == texts(generator, "a", temperature=0)
    assert len(texts(generator, "a", temperature=1e300)[0]) > 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "--temperature must be a finite number at least 0, but is -1.0"),
        ({"temperature": float("nan")}, "--temperature must be a finite number at least 0, but is nan"),
        ({"top_k": 0}, "--top-k must be a whole number at least 1, but is 0"),
        (
            {"top_p": 1.1},
            "--top-p must be a finite number above 0 and at most 1|--top-p must be a finite number at most",
        ),
        ({"top_p": 0.0}, "--top-p must be a finite number"),
        ({"stop": ("",)}, "--stop must be a text of at least one character"),
    ],
)
def test_values_out_of_range_are_named_with_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**settings)


def test_a_time_limit_ends_the_text(generator: TextGenerator) -> None:
    (result,) = generator.generate("a", SamplingConfig(time_limit_seconds=1e-9))
    assert (len(result.token_ids), result.reason) == (1, "time_limit")
    for batch_size in (1, 2, 3):
        sampling = SamplingConfig(time_limit_seconds=1e-9, num_samples=3, batch_size=batch_size)
        assert [len(result.token_ids) for result in generator.generate("a", sampling)] == [1] * batch_size


def test_a_criterion_of_the_user_ends_rows_and_names_its_reason(generator: TextGenerator) -> None:
    class ThreeTokens:
        reason = "three_tokens"

        def __call__(self, token_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> list[bool]:
            assert [BYTES.decode(list(row)).startswith(text) for row, text in zip(token_ids, texts, strict=True)]
            return [len(row) == 3 for row in token_ids]

    for result in generator.generate(["a", "bc"], SamplingConfig(num_samples=2), criteria=[ThreeTokens()]):
        assert (len(result.token_ids), result.reason) == (3, "three_tokens")


def test_a_criterion_keeps_the_reason_of_a_row_that_has_ended(
    certain_generator: Callable[[str], TextGenerator],
) -> None:
    class Always:
        reason = "always"

        def __call__(self, token_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> list[bool]:
            return [True for _ in token_ids]

    results = certain_generator("ab").generate(["a", "b"], SamplingConfig(), criteria=[Always()])
    assert [(result.text, result.reason) for result in results] == [("b", "always"), ("", "end_of_text")]


def test_a_row_whose_tokens_are_all_banned_ends_without_candidate(generator: TextGenerator) -> None:
    class BanAllInLongPrompts:
        name, stage = "ban_all", "bans"

        def __call__(self, token_ids: torch.Tensor, logits: torch.Tensor, prompt_lengths: torch.Tensor) -> torch.Tensor:
            return logits.masked_fill((prompt_lengths > 1).unsqueeze(1), -torch.inf)

    processor: Any = BanAllInLongPrompts()
    ended, going_on = generator.generate(["ab", "a"], SamplingConfig(max_new_tokens=3), processors=[processor])
    assert (ended.text, ended.token_ids, ended.reason) == ("", [], "no_candidate")
    assert (len(going_on.token_ids), going_on.reason) == (3, "max_new_tokens")


def test_weights_that_are_no_numbers_are_named(generator: TextGenerator) -> None:
    with torch.no_grad():
        generator.model.final_norm.weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match=r"logits are not numbers \(NaN\)"):
            generator.generate("a", SamplingConfig(temperature=temperature))


def test_a_model_in_training_goes_back_to_training_and_is_sampled_without_dropout(
    build_model: Callable[..., GPT],
) -> None:
    model = build_model(dropout=0.5)
    generator = TextGenerator(model, BYTES)
    expected = texts(generator, "a", temperature=0)
    model.train()
    assert texts(generator, "a", temperature=0) == expected
    assert model.training


def test_a_consumer_between_two_pieces_may_train(generator: TextGenerator) -> None:
    stream = generator.stream("a", SamplingConfig())
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"--device must be one of auto, cpu.* but is 'tpu'"):
        choose_device("tpu")


def test_a_tokenizer_of_another_vocabulary_than_the_model_is_refused(build_model: BuildModel, tmp_path: Path) -> None:
    model = build_model(vocab_size=300)
    path = tmp_path / "odd.pt"
    save_checkpoint(
        path,
        model_config=model.config,
        state_dict=model.state_dict(),
        tokenizer=ByteTokenizer().state(),
        provenance={},
    )
    with pytest.raises(CheckpointError, match=r"odd\.pt: its tokenizer has 257 tokens, its model 300"):
        TextGenerator.load(path)


def write_checkpoint(model: GPT, path: Path) -> Path:
    save_checkpoint(
        path, model_config=model.config, state_dict=model.state_dict(), tokenizer=ByteTokenizer().state(), provenance={}
    )
    return path


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@needs_compiler
@pytest.mark.parametrize(
    ("variant", "cache"), [("gpt2", "window"), ("llama", "window"), ("ours", "window"), ("ours", "rolling")]
)
def test_the_compiled_kernel_draws_the_same_texts(
    build_model: BuildModel, tmp_path: Path, variant: str, cache: Literal["window", "rolling"]
) -> None:
    path = write_checkpoint(build_model(variant), tmp_path / "a.pt")
    sampling = SamplingConfig(num_samples=3, max_new_tokens=50, cache=cache)
    plain, compiled = (
        TextGenerator.load(path, "cpu", compile=flag).generate(["ab", "abcde"], sampling) for flag in (False, True)
    )
    assert [result.token_ids for result in plain] == [result.token_ids for result in compiled]
    for ours, theirs in zip(plain, compiled, strict=True):
        assert ours.log_probabilities == pytest.approx(theirs.log_probabilities, abs=1e-4)


@needs_compiler
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_give_nearly_the_same_probabilities(
    build_model: BuildModel, tmp_path: Path, precision: Precision
) -> None:
    path = write_checkpoint(build_model("gpt2", n_embd=64), tmp_path / "a.pt")
    exact, rounded = (TextGenerator.load(path, "cpu", name) for name in ("fp32", precision))
    tokens = torch.arange(16)[None]
    ours, expected = (generator.model(tokens).log_softmax(dim=-1) for generator in (rounded, exact))
    divergence = (expected.exp() * (expected - ours)).sum(dim=-1).mean()
    assert 0 < divergence < 0.02 * -(expected.exp() * expected).sum(dim=-1).mean()


def test_what_only_a_cpu_can_is_refused_elsewhere(build_model: BuildModel) -> None:
    cuda = torch.device("cuda")
    with pytest.raises(UserError, match="--precision int8 needs a CPU, but the device is cuda"):
        on_device(build_model(), cuda, "int8", compile=False)
    with pytest.raises(UserError, match="--compile needs a CPU"):
        on_device(build_model(), cuda, "bf16", compile=True)
