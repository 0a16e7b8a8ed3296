"""What docs/decoding.md says is what the code does."""

import re
from pathlib import Path

import pytest
import torch

from command_line import UserError
from generation.config import GenerateConfig, LoadConfig, SamplingConfig, SpeechConfig
from generation.extensions import load_extension
from generation.score import ScoreConfig
from generation.text_generator import TextGenerator

PAGE = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")


def test_the_rule_of_the_page_works_as_it_stands(generator: TextGenerator, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "my_rules.py"
    path.write_text(code, encoding="utf-8")
    processor = load_extension("--processor", f"{path}:NoQuestions", generator.tokenizer)
    settings = SamplingConfig(logit_bias=(f"{ord('?')}:5",), num_samples=5)
    assert "?" in "".join(result.text for result in generator.generate("a", settings))
    assert "?" not in "".join(result.text for result in generator.generate("a", settings, processors=[processor]))


def test_every_flag_on_the_page_exists() -> None:
    configs = (GenerateConfig, LoadConfig, SamplingConfig, ScoreConfig, SpeechConfig)
    names = {name.replace("_", "-") for config in configs for name in config.__dataclass_fields__}
    known = {"--" + name for name in names} | {"--no-" + name for name in names}
    of_train = {"--preset", "--dropout", "--steps", "--batch-tokens"}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", PAGE)) - known - of_train == set()


def test_every_picture_on_the_page_exists() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) >= 3
    assert all((Path(__file__).parents[2] / "docs" / picture).is_file() for picture in pictures)


def test_mistake_1_dividing_probabilities_changes_nothing_and_softmax_of_them_is_almost_uniform() -> None:
    probabilities = torch.tensor([4.0, 1.0, 0.0]).softmax(-1)
    divided = probabilities / 0.5
    assert torch.allclose(divided / divided.sum(), probabilities)
    assert float((probabilities / 1.0).softmax(-1).max()) < 0.6 < 0.9 < float(probabilities.max())


def test_mistake_2_one_factor_for_all_candidates_cancels() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    assert torch.allclose(probabilities * 0.07 / (probabilities * 0.07).sum(), probabilities)


def test_mistake_3_a_volume_of_100_is_refused_with_these_words() -> None:
    (words,) = re.findall(r"here they are refused: `([^`]+)`", PAGE)
    with pytest.raises(UserError, match=re.escape(words)):
        SpeechConfig(speech_volume=100.0)
