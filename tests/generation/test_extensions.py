"""Processors and criteria from a user's own file, and what a wrong one is told."""

from pathlib import Path

import pytest

from command_line import UserError
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.extensions import load_extension
from generation.text_generator import TextGenerator

RULES = '''
import torch

class OnlyLetter:
    """Writes nothing but one letter."""
    stage = "bans"

    def __init__(self, letter, tokenizer):
        self.token = tokenizer.encode(letter)[0]
        self.name = f"only {letter}"

    def __call__(self, token_ids, logits, prompt_lengths):
        keep = torch.zeros_like(logits, dtype=torch.bool)
        keep[:, self.token] = True
        return logits.masked_fill(~keep, -torch.inf)

class AfterLetters:
    reason = "enough_letters"

    def __init__(self, n=3):
        self.n = n

    def __call__(self, token_ids, texts):
        return [len(text) >= self.n for text in texts]

def broken():
    raise RuntimeError("my own mistake")
'''


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(RULES)
    return path


def test_a_class_gets_its_arguments_and_the_tokenizer(generator: TextGenerator, rules: Path) -> None:
    processor = load_extension("--processor", f"{rules}:OnlyLetter(letter='z')", generator.tokenizer)
    criterion = load_extension("--criterion", f"{rules}:AfterLetters", generator.tokenizer)
    (result,) = generator.generate("a", SamplingConfig(), processors=[processor], criteria=[criterion])
    assert (result.text, result.reason) == ("zzz", "enough_letters")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", r"must look like PATH.py:Class or PATH.py:Class\(name=value, ...\), but is 'nonsense'"),
        ("missing.py:Rule", r"there is no file 'missing.py'"),
        ("{path}:OnlyLeter(letter='a')", r"defines no 'OnlyLeter' \(did you mean OnlyLetter\?\)"),
        ("{path}:OnlyLetter", r"OnlyLetter\(letter, tokenizer\) has missing a required argument: 'letter'"),
        ("{path}:OnlyLetter(word='a')", r"has missing a required argument: 'letter'"),
        ("{path}:OnlyLetter(letter=print('hello'))", r"arguments must look like \(name=value, ...\) with plain values"),
        ("{path}:OnlyLetter('a')", r"arguments must look like"),
    ],
)
def test_what_is_wrong_is_named(rules: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_extension("--processor", text.format(path=rules), ByteTokenizer())


def test_the_users_own_mistake_keeps_its_traceback(rules: Path) -> None:
    with pytest.raises(RuntimeError, match="my own mistake"):
        load_extension("--processor", f"{rules}:broken", ByteTokenizer())
