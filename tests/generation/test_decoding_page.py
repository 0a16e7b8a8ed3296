"""What docs/decoding.md says is what the code does."""

import re
from pathlib import Path

import pytest
import torch

import train
from command_line import UserError
from docs import one_token, pictures
from generation.config import GenerateConfig, LoadConfig, SamplingConfig, SpeechConfig
from generation.extensions import load_extension
from generation.score import ScoreConfig
from generation.text_generator import TextGenerator

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (FOLDER / "decoding.md").read_text(encoding="utf-8")
STEPS = re.split(r"^## (?=[0-9]+\.)", PAGE.partition("## Three common mistakes")[0], flags=re.MULTILINE)[1:]


def test_the_rule_of_the_page_works_as_it_stands(generator: TextGenerator, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "my_rules.py"
    path.write_text(code, encoding="utf-8")
    processor = load_extension("--processor", f"{path}:NoQuestions", generator.tokenizer)
    settings = SamplingConfig(logit_bias=(f"{ord('?')}:5",), num_samples=5)
    assert "?" in "".join(result.text for result in generator.generate("a", settings))
    assert "?" not in "".join(result.text for result in generator.generate("a", settings, processors=[processor]))


def test_every_flag_on_the_page_exists() -> None:
    configs = (GenerateConfig, LoadConfig, SamplingConfig, ScoreConfig, SpeechConfig, pictures.PictureConfig)
    names = {name.replace("_", "-") for config in configs for name in config.__dataclass_fields__}
    known = {"--" + name for name in names} | {"--no-" + name for name in names}
    of_train = {flag for action in train.build_parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", PAGE)) - known - of_train == set()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.partition(".")[0])
def test_every_step_has_a_command_with_its_output_and_a_picture_with_its_command(step: str) -> None:
    programs = r"(?:generate\.py|-m generation\.score)"
    commands = re.findall(rf"^    \$ python {programs} .+\n    (?!\$).*\S", step, re.MULTILINE)
    assert commands
    shown = re.findall(r"!\[[^\]]+\]\(([\w-]+)\.png\)", step)
    assert shown
    made = re.findall(r"python -m docs\.pictures --only ([\w-]+)|--plot ([\w-]+)\.png", step)
    assert sorted(shown) == sorted("".join(names) for names in made)


def test_the_steps_are_numbered_and_their_pictures_are_all_there_are() -> None:
    assert [step.partition(".")[0] for step in STEPS] == [str(number) for number in range(1, len(STEPS) + 1)]
    assert len(STEPS) == 11
    shown = re.findall(r"\(([\w-]+)\.png\)", PAGE)
    assert sorted(shown) == sorted(pictures.PICTURES)
    assert sorted(path.stem for path in FOLDER.glob("*.png")) == sorted(shown)


@pytest.mark.parametrize("name", sorted(set(pictures.PICTURES) - {"speech", "next-token", pictures.CHINESE}))
def test_every_picture_can_be_drawn_from_any_model(generator: TextGenerator, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.png"
    pictures.save(pictures.PICTURES[name](generator), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_the_window_counts_what_goes_through_the_model(generator: TextGenerator) -> None:
    # The context has 16 tokens, the first of which is the end of text that an empty prompt stands for.
    exact = one_token.positions_computed(generator, SamplingConfig(cache="exact"), 40)
    assert exact == [1] * 15 + [16] * 25
    assert one_token.positions_seen(exact) == [*range(2, 17)] + [16] * 25
    window = one_token.positions_computed(generator, SamplingConfig(cache="window"), 40)
    # Full at 16; then 8 of them are computed anew, so 8 more fit before the next time.
    assert window == [1] * 15 + ([8] + [1] * 8) * 2 + [8] + [1] * 6
    assert set(one_token.positions_seen(window)[15:]) == set(range(8, 17))


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
