"""A Hugging Face sequence classifier as the body of a discriminator: fine-tuned here, rescoring text in decoding."""

import json
import random
import string
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import UserError, run_program
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.discriminators import load_guide
from generation.guidance import Guidance
from generation.text_generator import TextGenerator
from model.checkpoint import CheckpointError, save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from model.text_classifier import DESCRIPTION, TextClassifier
from training import train_discriminator as program

TOKENIZER = ByteTokenizer()
VOWELS, CONSONANTS = "aeiou", "bcdfg"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, whose tokens are letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model over UTF-8 bytes: every byte is equally probable."""
    config = ModelConfig(vocab_size=257, context_length=32, n_layer=1, n_head=1, n_embd=16, tied_head=False)
    model = GPT(config)
    torch.nn.init.zeros_(model.head.weight)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    state = model.state_dict()
    save_checkpoint(path, model_config=config, state_dict=state, tokenizer=TOKENIZER.state(), provenance={})
    return path


@pytest.fixture(scope="module")
def trained(bert: Path, language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a discriminator of words of vowels and words of consonants, made by the program itself."""
    folder, chance = tmp_path_factory.mktemp("piles"), random.Random(0)
    for name, letters in (("vowels", VOWELS), ("consonants", CONSONANTS)):
        texts = ["".join(chance.choices(letters, k=6)) for _ in range(120)]
        (folder / f"{name}.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    words = ["--desired", folder / "vowels.txt", "--undesired", folder / "consonants.txt", "--body", bert]
    words += ["--checkpoint", language_model, "--output", folder / "result", "--device", "cpu"]
    words += ["--epochs", "6", "--batch-texts", "16", "--learning-rate", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training.train_discriminator", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_program(program.main)
    assert ended.value.code == 0
    return folder / "result"


def test_a_fine_tuned_bert_knows_held_out_texts_and_steers(trained: Path, language_model: Path) -> None:
    held_out = json.loads((trained / DESCRIPTION).read_text(encoding="utf-8"))["held_out"]
    assert [part["lengths"] for part in held_out] == ["first quarter", "first half", "whole texts"]
    assert held_out[-1]["accuracy"] > 0.95
    letters = tuple(f"{letter}:50" for letter in (VOWELS + CONSONANTS).encode())
    sampling = SamplingConfig(max_new_tokens=1, num_samples=60, logit_bias=letters)
    generator = TextGenerator.load(language_model, "cpu")
    for label, wanted in (("vowels", VOWELS), ("consonants", CONSONANTS)):
        guidance = Guidance([load_guide(f"{trained}:{label}", 4.0, TOKENIZER)], 10)
        drawn = "".join(result.text for result in generator.generate("", sampling, processors=[guidance]))
        assert sum(letter in wanted for letter in drawn) >= 55  # unguided: 30


@torch.no_grad()
def test_candidates_score_as_transformers_scores_their_texts(trained: Path) -> None:
    """Rows of different lengths, one of them longer than BERT can read: there the newest letters count."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification.from_pretrained(trained).eval()
    numbers = transformers.AutoTokenizer.from_pretrained(trained).get_vocab()
    sharpness = TextClassifier.load(trained).sharpness
    prefixes, candidates = ["ab", "bcdfgaeiouaeiou"], "ec"
    width = max(map(len, prefixes))
    rows = torch.tensor([[*prefix.encode(), *[-1] * (width - len(prefix))] for prefix in prefixes])
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    scorer = load_guide(str(trained), 1.0, TOKENIZER).scorer
    scores = scorer.log_odds(rows, lengths, torch.tensor([list(candidates.encode())] * 2))
    for row, prefix in enumerate(prefixes):
        for column, candidate in enumerate(candidates):
            text = prefix + candidate
            pieces = [text[0], *(f"##{letter}" for letter in text[1:])][-10:]  # 12 places, two of them special
            ids = [numbers["[CLS]"], *(numbers[piece] for piece in pieces), numbers["[SEP]"]]
            logits = sharpness * model(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(scores[row, column], logits[0] - logits[1], rtol=1e-4, atol=1e-4)


def test_the_end_of_text_is_scored_as_the_text_that_ends(trained: Path) -> None:
    scorer = load_guide(str(trained), 1.0, TOKENIZER).scorer
    whole = scorer.log_odds(torch.tensor([[*b"ab"]]), torch.tensor([2]), torch.tensor([[TOKENIZER.end_of_text]]))
    before = scorer.log_odds(torch.tensor([[*b"a"]]), torch.tensor([1]), torch.tensor([[*b"b"]]))
    torch.testing.assert_close(whole, before)


def test_a_changed_file_is_refused(trained: Path, tmp_path: Path) -> None:
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was saved"):
        load_guide(str(tmp_path), 1.0, TOKENIZER)


def test_what_is_no_classifier_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[Exception], str, Any]] = [
        (CheckpointError, "holds no usable discriminator", lambda: load_guide(str(tmp_path), 1.0, TOKENIZER)),
        (UserError, "--body .* must be a folder", lambda: TextClassifier.from_body(tmp_path, ["a", "b"])),
        (UserError, "has no fast mode", lambda: load_guide(str(trained), 1.0, TOKENIZER, fast=True)),
        (UserError, "are vowels, consonants, not", lambda: load_guide(f"{trained}:vowls", 1.0, TOKENIZER)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
