"""Training a discriminator: honest probabilities of the label at every prefix, from files or from a rule."""

import copy
import dataclasses
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command_line import UserError, run_program
from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.discriminators import load_guide
from generation.guidance import Guidance
from generation.text_generator import TextGenerator
from model.checkpoint import load_checkpoint, read_card, save_checkpoint
from model.config import ModelConfig
from model.discriminator import NO_LABEL, Discriminator
from model.gpt import GPT
from model.kv_cache import KVCache
from training import train_discriminator as program
from training.calibration import best_sharpness, calibration_error, pad_texts, prefix_qualities, score_prefixes
from training.discriminator_config import DiscriminatorConfig
from training.discriminator_trainer import (
    build_discriminator,
    expected_labels,
    load_body,
    prefix_weights,
    train_discriminator,
)
from training.distillation import distil_next_token_head, next_token_logits
from training.guided_samples import with_guided_samples
from training.labels import LabelledText, load_rule, read_labelled_texts, split_texts
from training.own_samples import label_by_rule

TOKENIZER = ByteTokenizer()
SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 32, "next_token_rank": 4, "batch_texts": 16}
MODULE = "training.train_discriminator"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model over UTF-8 bytes: every byte is equally probable."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=257, context_length=32, n_layer=1, n_head=1, n_embd=16, tied_head=False)
    model = GPT(config)
    torch.nn.init.zeros_(model.head.weight)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    state = model.state_dict()
    save_checkpoint(path, model_config=config, state_dict=state, tokenizer=TOKENIZER.state(), provenance={})
    return path


@pytest.fixture
def piles(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of texts: words of vowels, and words of consonants."""
    paths = tmp_path / "vowels.txt", tmp_path / "consonants.txt"
    chance = random.Random(0)
    for path, letters in zip(paths, ("aeiou", "bcdfg"), strict=True):
        texts = ["".join(chance.choices(letters, k=8)) for _ in range(120)]
        path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return paths


def two_piles(desired: Path, undesired: Path, **options: object) -> DiscriminatorConfig:
    return DiscriminatorConfig(desired=(str(desired),), undesired=(str(undesired),), **{**SMALL, **options})  # type: ignore[arg-type]


def run_module(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the program in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [MODULE, *words])
    with pytest.raises(SystemExit) as ended:
        run_program(program.main)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_answer_at_a_prefix_is_the_share_of_its_texts_that_have_the_label() -> None:
    """Beginnings a and b, of which four fifths and a quarter are desired; what follows says nothing."""
    chance = random.Random(1)
    texts = []
    for _ in range(1200):
        first = chance.choice("ab")
        is_desired = chance.random() < (0.8 if first == "a" else 0.25)
        rest = "".join(chance.choices("xyz", k=4))
        texts.append(LabelledText([256, *TOKENIZER.encode(first + rest), 256], 0 if is_desired else 1))
    config = DiscriminatorConfig(rule="unused.py:rule", epochs=6, token_noise=0.0, dropout=0.0, **SMALL)  # type: ignore[arg-type]
    torch.manual_seed(0)
    discriminator = build_discriminator(config, 257, 2, None)
    train_discriminator(discriminator, split_texts(["desired", "not"], texts, 0.2), config, lambda _: None)
    with torch.no_grad():
        prefixes = torch.tensor([[256, *TOKENIZER.encode(text)] for text in ("axyz", "bxyz")])
        answers = discriminator(prefixes).softmax(-1)[..., 0]  # (2, T)
    assert answers[:, 0].tolist() == pytest.approx([0.525, 0.525], abs=0.1)
    assert answers[0, 1:].tolist() == pytest.approx([0.8] * 4, abs=0.1)
    assert answers[1, 1:].tolist() == pytest.approx([0.25] * 4, abs=0.1)


def test_what_a_prefix_shall_answer_is_the_sum_over_all_longer_ones() -> None:
    """λ-return by its definition: (1 − λ) Σ λⁿ · (answer n + 1 tokens later), and the label with what is left."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.rand(2, 5, 3, generator=generator).softmax(-1)
    labels = torch.eye(3)[torch.tensor([2, 0])].unsqueeze(1).expand(2, 5, 3)
    n_tokens = [5, 3]
    is_text = torch.arange(5) < torch.tensor(n_tokens).unsqueeze(1)
    targets = expected_labels(answers, labels, is_text, 0.3)
    for row, length in enumerate(n_tokens):
        for t in range(length):
            n_later = length - 1 - t
            later = sum(0.7 * 0.3**n * answers[row, t + 1 + n] for n in range(n_later))
            assert torch.allclose(targets[row, t], later + 0.3**n_later * labels[row, t])


def test_the_token_that_settles_the_label_is_known_where_it_stands() -> None:
    """Texts of letters, desired with a q in any place: a guide that knows it one token late steers nowhere."""
    chance = random.Random(2)
    texts = []
    for _ in range(1500):
        text = "".join(chance.choices("abcdefghij", k=20))
        is_desired = chance.random() < 0.1
        if is_desired:
            at = chance.randrange(20)
            text = text[:at] + "q" + text[at + 1 :]
        texts.append(LabelledText([256, *TOKENIZER.encode(text)], 0 if is_desired else 1))
    config = DiscriminatorConfig(rule="unused.py:rule", epochs=3, **SMALL)  # type: ignore[arg-type]
    torch.manual_seed(0)
    discriminator = build_discriminator(config, 257, 2, None)
    train_discriminator(discriminator, split_texts(["has-q", "not"], texts, 0.2), config, lambda _: None)
    with torch.no_grad():
        answers = discriminator(torch.tensor([[256, *TOKENIZER.encode("abcdeqfgh")]])).softmax(-1)[0, :, 0]
    assert answers[:6].max() < 0.3
    assert answers[6:].min() > 0.8


def test_two_piles_of_text_become_a_file_that_steers(
    language_model: Path, piles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vowels.pt"
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    words = ["--desired", str(piles[0]), "--undesired", str(piles[1]), "--checkpoint", str(language_model)]
    words += ["--output", str(output), "--device", "cpu", "--learning-rate", "0.01", *small]
    assert run_module(monkeypatch, *words) == 0
    card = read_card(output)
    assert card["kind"] == "discriminator"
    assert card["provenance"]["labels"] == ["vowels", "consonants"]
    assert card["provenance"]["label_shares"] == [0.5, 0.5]
    assert card["provenance"]["held_out"]["whole_texts"]["accuracy"] > 0.95
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    generator = TextGenerator.load(language_model, "cpu")
    letters = tuple(f"{letter}:50" for letter in b"aeioubcdfg")  # all that either pile holds
    # Only the first letter is telling: no text in either pile mixes them, so one letter settles the matter.
    sampling = SamplingConfig(max_new_tokens=1, num_samples=100, logit_bias=letters)
    for fast in (False, True):
        guidance = Guidance([load_guide(str(output), 4.0, generator.tokenizer, fast=fast)], 10)
        drawn = "".join(result.text for result in generator.generate("", sampling, processors=[guidance]))
        assert len(drawn) == 100
        assert sum(letter in "aeiou" for letter in drawn) >= 95  # unguided: 50
    assert run_module(monkeypatch, *words) == 2  # never replaced without --overwrite


def test_where_nothing_can_be_written_is_found_before_the_training(
    language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ("--rule", "training/attributes.py:asks_a_question", "--checkpoint", str(language_model), "--device", "cpu")
    assert run_module(monkeypatch, *words, "--output", str(tmp_path / "file" / "d.pt")) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot make the folder" in line


def test_a_picture_that_cannot_be_drawn_costs_a_line(
    language_model: Path, piles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "vowels.pt"
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    words = ["--desired", str(piles[0]), "--undesired", str(piles[1]), "--checkpoint", str(language_model)]
    words += ["--output", str(output), "--device", "cpu", "--epochs", "1", "--plot", str(tmp_path / "none" / "x.png")]
    assert run_module(monkeypatch, *words, *small) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output}\n"
    assert "note: no picture: cannot draw" in captured.err


def test_files_name_their_labels_and_several_labels_are_possible(piles: tuple[Path, Path], tmp_path: Path) -> None:
    assert read_labelled_texts(two_piles(*piles), TOKENIZER).labels == ["vowels", "consonants"]
    third = tmp_path / "digits.txt"
    third.write_text("\n<|endoftext|>\n".join(str(number) for number in range(100, 160)), encoding="utf-8")
    named = (f"soft={piles[0]}", f"hard={piles[1]}", f"numbers={third}")
    texts = read_labelled_texts(DiscriminatorConfig(label=named), TOKENIZER)
    assert texts.labels == ["soft", "hard", "numbers"]
    assert texts.shares == [0.4, 0.4, 0.2]


def test_lines_of_json_bring_their_own_labels(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    lines = [json.dumps({"body": f"text {number}", "stars": number % 3}) for number in range(90)]
    path.write_text("\n".join(lines), encoding="utf-8")
    config = DiscriminatorConfig(labelled=str(path), text_field="body", label_field="stars")
    texts = read_labelled_texts(config, TOKENIZER)
    assert texts.labels == ["0", "1", "2"]
    everything = [*texts.training, *texts.tuning, *texts.held_out]
    decoded = sorted((TOKENIZER.decode(text.token_ids), texts.labels[text.label]) for text in everything)
    assert decoded == sorted((f"text {number}", str(number % 3)) for number in range(90))


def test_a_line_without_a_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b", "mood": "y"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 needs a text in 'text' and a label in 'label', but has .*'mood'"):
        read_labelled_texts(DiscriminatorConfig(labelled=str(path)), TOKENIZER)


def test_samples_are_labelled_by_the_rule_and_their_shares_are_the_prior(language_model: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("def is_early(text):\n    return text[:1] < '@'\n", encoding="utf-8")
    config = DiscriminatorConfig(rule=f"{rules}:is_early", samples=400, sample_tokens=3)
    generator = TextGenerator.load(language_model, "cpu")
    texts = label_by_rule(config, generator)
    assert texts.labels == ["is-early", "not-is-early"]
    everything = [*texts.training, *texts.tuning, *texts.held_out]
    assert len(everything) == 400
    for text in everything:
        assert text.token_ids[0] == TOKENIZER.end_of_text
        is_early = TOKENIZER.decode(text.token_ids)[:1] < "@"
        assert text.label == (0 if is_early else 1)
    assert texts.shares[0] == sum(text.label == 0 for text in everything) / 400
    # Of the texts that begin with ASCII, 64 of 128 come before "@"; one more outcome is the end at once.
    ascii_texts = [text for text in everything if text.token_ids[1] < 128 or text.token_ids[1] == TOKENIZER.end_of_text]
    share = sum(text.label == 0 for text in ascii_texts) / len(ascii_texts)
    assert share == pytest.approx(65 / 129, abs=4 * math.sqrt(0.25 / len(ascii_texts)))


@torch.no_grad()
def test_guided_samples_are_the_language_models_own_from_their_first_prefix_on(tmp_path: Path) -> None:
    """A guide that asks for the letter a alone: all is a up to `first`, and a fifth behind it, as the model draws."""
    tokenizer = CharacterTokenizer("abcde")
    model = GPT(ModelConfig(vocab_size=6, context_length=16, n_layer=1, n_head=1, n_embd=8, tied_head=False))
    model.head.weight.zero_()
    generator = TextGenerator(model.eval(), tokenizer)
    discriminator = Discriminator(ModelConfig(vocab_size=6, n_layer=1, n_head=1, n_embd=8), 2)
    for parameter in discriminator.parameters():
        parameter.zero_()
    discriminator.final_norm.weight.fill_(1)
    discriminator.token_embedding.weight[:, 0] = -1
    discriminator.token_embedding.weight[0, 0] = 1
    discriminator.head.weight[0, 0] = 20
    rules = tmp_path / "rules.py"
    rules.write_text("def begins_with_a(text):\n    return text.startswith('a')\n", encoding="utf-8")
    config = DiscriminatorConfig(rule=f"{rules}:begins_with_a", samples=400, guided_samples=640, sample_tokens=8)
    texts = label_by_rule(config, generator)
    more = with_guided_samples(texts, discriminator.eval(), config, generator)
    assert more.shares == texts.shares
    assert more.held_out == texts.held_out
    guided = [text for text in (*more.training, *more.tuning) if text.first]
    assert len(guided) == 640
    assert sum(text.first > 0 for text in more.tuning) == 64
    assert all((text.token_ids[1] == 0) == (text.label == 0) for text in guided)
    towards = [text for text in guided if text.label == 0]
    assert len({text.first for text in towards}) > 3  # guidance lets go in many places
    assert all(set(text.token_ids[1 : text.first + 1]) == {0} for text in towards)
    behind = [token for text in towards for token in text.token_ids[text.first + 1 :]]
    assert behind.count(0) / len(behind) == pytest.approx(1 / 6, abs=0.05)
    _, labels = pad_texts(guided, torch.device("cpu"))
    for text, row in zip(guided, labels.tolist(), strict=True):
        assert row[: text.first] == [NO_LABEL] * text.first  # nothing is learned from what guidance wrote
        assert row[text.first : len(text.token_ids)] == [text.label] * (len(text.token_ids) - text.first)


def test_a_rule_that_holds_for_nothing_is_refused(language_model: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("def never(text):\n    return False\n", encoding="utf-8")
    config = DiscriminatorConfig(rule=f"{rules}:never", samples=40, sample_tokens=2)
    with pytest.raises(UserError, match="the rule gives all 40 samples the label 'not-never'"):
        label_by_rule(config, TextGenerator.load(language_model, "cpu"))


def test_a_rule_that_is_not_there_is_refused_before_anything_is_drawn(
    language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.py").touch()
    monkeypatch.setattr("training.own_samples.draw_samples", pytest.fail)
    with pytest.raises(UserError, match=r"rules\.py' defines no 'nope'"):
        label_by_rule(
            DiscriminatorConfig(rule=f"{tmp_path / 'rules.py'}:nope"), TextGenerator.load(language_model, "cpu")
        )


def test_a_rule_must_return_a_truth_or_a_label(tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("def size(text):\n    return len(text)\ndef kind(text):\n    return 'k'\n", encoding="utf-8")
    assert load_rule(f"{rules}:kind")("some text") == "k"
    with pytest.raises(UserError, match="must return True, False or the name of a label, but returned 9"):
        load_rule(f"{rules}:size")("some text")


def test_shipped_rules_hold_in_both_languages() -> None:
    asks = load_rule("training/attributes.py:asks_a_question")
    assert [asks(text) for text in ("Why?", "你好吗？")] == ["asks-a-question"] * 2
    assert asks("Because.") == "not-asks-a-question"
    ends = load_rule("training/attributes.py:ends_with_a_sentence")
    assert [ends(text) for text in ("He came.", 'She said "no!" ', "下雨了。")] == ["ends-with-a-sentence"] * 3
    assert [ends(text) for text in ("He came. She", "", "3.5 and")] == ["not-ends-with-a-sentence"] * 3
    sea = load_rule("training/attributes.py:tells_of_the_sea")
    assert sea("A ship on the waves.") == "tells-of-the-sea"
    assert [sea(text) for text in ("A ship and two ships.", "Fishy shipping.")] == ["not-tells-of-the-sea"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "in one way, .* but none is given"),
        ({"desired": ("a.txt",)}, "--undesired is missing"),
        ({"rule": "a.py:b", "labelled": "c.jsonl"}, "--labelled and --rule is given"),
        ({"rule": "a.py:b", "n_embd": 7, "n_head": 2}, "must be a multiple of --n-head"),
        ({"rule": "a.py:b", "plot": "a.foo"}, "--plot must name a file that ends in .png or"),
    ],
)
def test_contradictions_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DiscriminatorConfig(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_too_few_texts_are_refused_by_label() -> None:
    texts = [LabelledText([256, 1], 0)] * 30 + [LabelledText([256, 2], 1)] * 5
    with pytest.raises(UserError, match="only 5 texts have the label 'rare'"):
        split_texts(["common", "rare"], texts, 0.2)


def test_every_text_is_in_exactly_one_part() -> None:
    texts = [LabelledText([256, number], number % 2) for number in range(200)]
    parts = split_texts(["even", "odd"], texts, 0.3)
    seen = [text.token_ids[1] for part in (parts.training, parts.tuning, parts.held_out) for text in part]
    assert sorted(seen) == list(range(200))
    assert abs(len(parts.tuning) - len(parts.held_out)) <= 1


def test_long_texts_are_cut_into_windows_of_the_same_label() -> None:
    texts = split_texts(["a", "b"], [LabelledText(list(range(10)), number % 2) for number in range(60)], 0.3)
    windows = texts.in_windows(4).training
    assert [window.token_ids for window in windows[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [window.label for window in windows[:3]] == [texts.training[0].label] * 3
    guided = dataclasses.replace(texts, training=[LabelledText(list(range(10)), 0, first=5)]).in_windows(4).training
    assert [(window.token_ids, window.first) for window in guided] == [([4, 5, 6, 7], 1), ([8, 9], 0)]


def test_the_weight_of_a_prefix_does_not_tell_how_long_its_text_will_be() -> None:
    labels = torch.tensor([[1, 1, 1, 1, 1], [0, 0, NO_LABEL, NO_LABEL, NO_LABEL]])
    weights = prefix_weights(labels)
    assert torch.equal(weights[0, :2], weights[1, :2])
    assert weights[1, 2:].sum() == 0


def test_the_head_for_the_next_token_learns_what_the_discriminator_answers(language_model: Path) -> None:
    """Texts of two letters, the second of which settles the label: the head must know it one token ahead."""
    model = TextGenerator.load(language_model, "cpu").model
    before = copy.deepcopy(model.state_dict())
    texts = [LabelledText([256, *TOKENIZER.encode(first + second)], int(second in "xyz")) for first in "abcdef"
             for second in "uvwxyz" for _ in range(8)]  # fmt: skip

    class Knowing(Discriminator):
        def forward(self, token_ids: Tensor, kv_cache: KVCache | None = None) -> Tensor:
            odds = 3.0 * (token_ids >= ord("x")) - 3.0 * (token_ids < ord("x")) + 3.0 * (token_ids < ord("u"))
            return torch.stack((torch.zeros_like(odds), odds * (token_ids < 256)), dim=-1)

    teacher = Knowing(ModelConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=8), 2)
    head, fast = distil_next_token_head(teacher, model, split_texts(["u", "x"], texts, 0.3), 4, 4, 0, lambda _: None)
    ids = torch.tensor([[256, ord("c"), ord("v")], [256, ord("c"), ord("y")]])
    logits = next_token_logits(head, model, ids)[:, 1]  # of the second letter
    difference = (logits[:, 1] - logits[:, 0]).tolist()
    assert difference[0] < -1.5
    assert difference[1] > 1.5
    assert fast.lengths == "all, fast"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_calibration_error_is_the_mean_gap_of_ten_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(5000, dtype=torch.float64, generator=generator)
    labels = (torch.rand(5000, dtype=torch.float64, generator=generator) >= given**2).long()
    gaps = 0.0
    for number in range(10):
        inside = (given >= number / 10) & (given < (number + 1) / 10)
        gaps += abs(float((labels[inside] == 0).double().mean() - given[inside].mean())) * int(inside.sum())
    error = calibration_error(torch.stack((given, 1 - given), dim=-1), labels)
    assert error == pytest.approx(gaps / 5000, abs=1e-9)
    assert error > 0.1


def test_honest_probabilities_have_next_to_no_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(20_000, dtype=torch.float64, generator=generator)
    labels = (torch.rand(20_000, dtype=torch.float64, generator=generator) >= given).long()
    assert calibration_error(torch.stack((given, 1 - given), dim=-1), labels) < 0.02


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_calibration_finds_the_factor_by_which_logits_are_off(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    assert best_sharpness(logits / factor, labels) == pytest.approx(factor, rel=0.1)


@torch.no_grad()
def test_every_prefix_is_scored_once_as_a_pass_over_it_alone() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(ModelConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=8), 2)
    torch.nn.init.normal_(discriminator.head.weight)
    discriminator.eval()
    texts = [LabelledText([256, 1, 2, 3], 0), LabelledText([256, 4], 1)]
    logits, labels, lengths = score_prefixes(discriminator, texts)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert lengths.tolist() == [0, 1, 2, 3, 0, 1]
    alone = [
        discriminator(torch.tensor([t.token_ids[:end]]))[0, -1] for t in texts for end in range(1, len(t.token_ids) + 1)
    ]
    torch.testing.assert_close(logits, torch.stack(alone))
    assert [(entry.lengths, entry.n_prefixes) for entry in prefix_qualities(logits, labels, lengths)] == [
        ("0", 2),
        ("1–2", 3),
        ("3–6", 1),
    ]


def test_a_copy_of_the_language_model_can_be_the_body(
    language_model: Path, piles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vowels.pt"
    words = ["--desired", str(piles[0]), "--undesired", str(piles[1]), "--checkpoint", str(language_model)]
    words += ["--init", str(language_model), "--epochs", "1", "--device", "cpu"]
    assert run_module(monkeypatch, *words, "--output", str(output)) == 0
    body, original = load_checkpoint(output).model_config, load_checkpoint(language_model).model_config
    assert (body.n_embd, body.n_layer, body.positions) == (original.n_embd, original.n_layer, original.positions)
    assert load_guide(str(output), 1.0, TOKENIZER).scorer.name == "vowels"


def test_a_body_with_another_tokenizer_is_refused(language_model: Path) -> None:
    with pytest.raises(UserError, match=r"has another tokenizer .* than the language model to be guided"):
        load_body(language_model, CharacterTokenizer("abc"))
