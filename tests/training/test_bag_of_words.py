"""The classifier of whole texts finds the optimum that its formula has, and passes on what it knows to samples."""

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from command_line import UserError
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.text_generator import Result, TextGenerator
from model.config import ModelConfig
from model.gpt import GPT
from training.bag_of_words import BagOfWords, words, words_and_pairs
from training.discriminator_config import DiscriminatorConfig
from training.labels import LabelledText, LabelledTexts
from training.own_samples import with_own_samples

TOKENIZER = ByteTokenizer()


def test_words_are_words_signs_and_marks() -> None:
    assert words("Don't go, Ana! 老虎说：好。") == ["don't", "go", "ana", "!", "老", "虎", "说", "好", "。"]
    assert words_and_pairs("a b a") == {"a", "b", "a b", "b a"}


def test_the_fit_is_the_optimum_of_the_written_formula() -> None:
    """Against Adam on a dense matrix in float64, whose columns are scaled by hand-counted ratios."""
    chance = random.Random(0)
    texts = [" ".join(chance.choices("abcdef" if number % 3 else "defghi", k=4)) for number in range(60)]
    labels = [0 if number % 3 else 1 + number % 2 for number in range(60)]
    features = sorted(
        f for f in {f for t in texts for f in words_and_pairs(t)} if sum(f in words_and_pairs(t) for t in texts) > 1
    )
    has = torch.tensor([[f in words_and_pairs(text) for f in features] for text in texts]).double()  # (N, F)
    targets = torch.tensor(labels)
    ratios = []
    for label in range(3):
        with_it, without = has[targets == label].sum(0) + 1, has[targets != label].sum(0) + 1
        ratios.append((with_it / with_it.sum()).log() - (without / without.sum()).log())
    weights = torch.zeros(3, len(features), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=0.05)
    scaled = has / has.sum(1, keepdim=True).sqrt()
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 1500)
        optimizer.zero_grad()
        logits = scaled @ (torch.stack(ratios) * weights).T + bias
        loss = F.cross_entropy(logits, targets) + BagOfWords.PENALTY / 60 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = BagOfWords(texts, labels, 3).logits(texts).softmax(1)
    torch.testing.assert_close(found.double(), logits.detach().softmax(1), atol=0.02, rtol=0)


@pytest.fixture
def texts() -> LabelledTexts:
    def of(words: str, label: int) -> list[LabelledText]:
        chance = random.Random(label)
        return [
            LabelledText([256, *TOKENIZER.encode(" ".join(chance.choices(words.split(), k=5))), 256], label)
            for _ in range(30)
        ]

    return LabelledTexts(
        ["sunny", "rainy"], [*of("sun warm gold", 0), *of("rain cold mud", 1)], of("sun", 0), of("mud", 1)
    )


def test_own_samples_are_labelled_by_what_the_training_texts_taught(
    texts: LabelledTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = ["warm gold and gold", "the mud is cold", "gold", "rain rain"]
    sizes = ModelConfig(vocab_size=257, context_length=16, n_layer=1, n_head=1, n_embd=8)
    generator = TextGenerator(GPT(sizes).eval(), TOKENIZER)

    def generate(prompt: str, sampling: object, **_: object) -> list[Result]:
        return [Result(n, prompt, text, "", TOKENIZER.encode(text), []) for n, text in enumerate(drawn)]

    monkeypatch.setattr(generator, "generate", generate)
    config = DiscriminatorConfig(desired=("a",), undesired=("b",), own_samples=4)
    more = with_own_samples(texts, config, generator)
    assert (more.tuning, more.held_out) == (texts.tuning, texts.held_out)
    assert more.training[:60] == texts.training
    own = more.training[60:]
    assert [text.token_ids for text in own] == [[256, *TOKENIZER.encode(text)] for text in drawn]
    assert [text.label for text in own] == [0, 1, 0, 1]
    training, tuning = ([replace(t, label=1 - t.label) for t in part] for part in (texts.training, texts.tuning))
    other = with_own_samples(replace(texts, training=training, tuning=tuning), config, generator)
    assert [text.label for text in other.training[60:]] == [1, 0, 1, 0]


def test_samples_that_a_rule_labels_are_all_own_samples() -> None:
    with pytest.raises(UserError, match="say --samples, not --own-samples"):
        DiscriminatorConfig(rule="a.py:b", own_samples=10)
