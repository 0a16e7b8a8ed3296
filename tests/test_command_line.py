"""Every flag of every config: what it refuses, in which words; and what a program's end tells the shell."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import BenchmarkConfig
from command_line import (
    ArgumentParser,
    Config,
    MissingPackageError,
    OptionType,
    UserError,
    add_options,
    check_options,
    config_from_dict,
    config_to_dict,
    flag_name,
    given_options,
    option,
    option_types,
)
from generation.config import GenerateConfig, LoadConfig, SamplingConfig, SpeechConfig
from generation.guidance_config import GuidanceConfig
from generation.score import ScoreConfig
from model.config import ModelConfig
from training.config import TrainConfig
from training.discriminator_config import DiscriminatorConfig

PROJECT = Path(__file__).parents[1]
CONFIGS: list[type[Config]] = [
    *(ModelConfig, TrainConfig, SamplingConfig, LoadConfig, GenerateConfig, SpeechConfig, GuidanceConfig, ScoreConfig),
    *(DiscriminatorConfig, BenchmarkConfig),
]
REQUIRED: dict[type[Config], dict[str, Any]] = {
    ModelConfig: {"vocab_size": 100},
    DiscriminatorConfig: {"rule": "ends_with_a_sentence"},
}

NO_NUMBER = ["", "x", "1_000", " 7", "٣", "0x10", "1,5", "--", "nan", "inf", "-inf"]
BAD_TEXTS: dict[type, list[str]] = {
    int: [*NO_NUMBER, "1.5", "1e3", "9" * 30],
    float: [*NO_NUMBER, "1e999", "1e", "."],
    bool: ["yes", "1", ""],
}
ALLOWED = {int: "a whole number", float: "a finite number"}


def parser_for(config_class: type[Config]) -> ArgumentParser:
    parser = ArgumentParser(prog="program.py")
    add_options(parser, config_class, "options")
    return parser


def flags(config_class: type[Config]) -> Iterator[tuple[dataclasses.Field[Any], OptionType]]:
    kinds = option_types(config_class)
    for field in dataclasses.fields(config_class):
        if field.metadata["flag"]:
            yield field, kinds[field.name]


def out_of_bounds(field: dataclasses.Field[Any], kind: OptionType) -> Iterator[str]:
    bounds = field.metadata["bounds"]
    for limit, step in ((bounds.at_least, -1), (bounds.at_most, 1), (bounds.above, 0), (bounds.below, 0)):
        if limit is not None:
            yield str(kind.scalar(limit) + step)


def bad_values() -> Iterator[Any]:
    for config_class in CONFIGS:
        for field, kind in flags(config_class):
            values = ["nonsense", "", kind.choices[0].upper()] if kind.choices else BAD_TEXTS.get(kind.scalar, [])
            bounds = list(out_of_bounds(field, kind)) if kind.scalar in (int, float) else []
            for value in [*values, *bounds]:
                flag = flag_name(field.name)
                yield pytest.param(config_class, flag, value, kind, id=f"{config_class.__name__} {flag}={value}")


@pytest.mark.parametrize(("config_class", "flag", "value", "kind"), list(bad_values()))
def test_a_bad_value_is_refused_with_flag_value_and_what_is_allowed(
    config_class: type[Config], flag: str, value: str, kind: OptionType
) -> None:
    with pytest.raises(UserError) as caught:
        parser_for(config_class).parse([f"{flag}={value}"])
    message = str(caught.value)
    assert message.count("\n") == 0
    assert flag in message
    if kind.scalar is not bool:
        assert message.endswith((repr(value), f"but is {value}")) or f"{value!r} (did you mean" in message
        assert ("one of " + ", ".join(kind.choices) if kind.choices else ALLOWED[kind.scalar]) in message


@pytest.mark.parametrize("config_class", CONFIGS)
def test_bounds_themselves_are_allowed_when_they_include_their_end(config_class: type[Config]) -> None:
    for field, kind in flags(config_class):
        bounds = field.metadata["bounds"]
        for limit in (bounds.at_least, bounds.at_most):
            if limit is not None:
                arguments = parser_for(config_class).parse([f"{flag_name(field.name)}={kind.scalar(limit)}"])
                value = getattr(arguments, field.name)
                assert value == ((limit,) if kind.several else limit)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_mistyped_flag_is_answered_with_the_one_that_was_meant(config_class: type[Config]) -> None:
    for field, _ in flags(config_class):
        flag = flag_name(field.name)
        for typed in (flag + "x", flag + "x=3"):
            with pytest.raises(
                UserError, match=f"unknown option '{flag}x' .did you mean {flag}.*; see program.py --help"
            ):
                parser_for(config_class).parse([typed])


def test_abbreviations_and_stray_words_are_refused() -> None:
    parser = parser_for(SamplingConfig)
    with pytest.raises(UserError, match=r"unknown option '--temp' \(did you mean --temperature\?\)"):
        parser.parse(["--temp=1"])
    with pytest.raises(UserError, match="unknown argument 'hello'"):
        parser.parse(["hello"])


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_flag_without_its_value_is_refused_by_name(config_class: type[Config]) -> None:
    for field, kind in flags(config_class):
        if kind.scalar is not bool:
            with pytest.raises(UserError, match=f"argument {flag_name(field.name)}: expected one argument"):
                parser_for(config_class).parse([flag_name(field.name)])


def test_a_negative_number_after_a_space_is_a_value_and_no_flag() -> None:
    with pytest.raises(UserError, match="--top-k must be a whole number at least 1, but is -1"):
        parser_for(SamplingConfig).parse(["--top-k", "-1"])
    for number in ("-0.5", "-1e-3", "-.5E+1", "-2."):
        assert parser_for(SamplingConfig).parse(["--presence-penalty", number]).presence_penalty == float(number)
    with pytest.raises(UserError, match=r"--presence-penalty must be .*, but is -1e308"):
        parser_for(SamplingConfig).parse(["--presence-penalty", "-1e308"])


def test_a_text_that_looks_like_a_flag_is_answered_with_how_to_write_it() -> None:
    parser = parser_for(SamplingConfig)
    with pytest.raises(
        UserError, match=r"argument --stop: expected one argument \(.* written behind =, as in --prompt=-x"
    ):
        parser.parse(["--stop", "-x"])
    assert parser.parse(["--stop=-x"]).stop == ("-x",)


def test_a_number_of_too_many_digits_is_refused_as_such() -> None:
    with pytest.raises(UserError, match="--top-k must be a whole number at least 1 of at most 19 digits, but is '9999"):
        parser_for(SamplingConfig).parse(["--top-k", "9" * 20])


@pytest.mark.parametrize("config_class", CONFIGS)
def test_help_shows_every_flag_and_its_default(config_class: type[Config]) -> None:
    text = " ".join(parser_for(config_class).format_help().split())
    for field, kind in flags(config_class):
        assert flag_name(field.name) in text
        help_text = " ".join(field.metadata["help"].split())
        assert help_text in text
        if (
            "(default" not in help_text
            and kind.scalar in (int, float)
            and field.default is not None
            and not kind.several
        ):
            assert f"{help_text} (default: {field.default})" in text


@pytest.mark.parametrize("config_class", CONFIGS)
def test_only_what_was_typed_is_given(config_class: type[Config]) -> None:
    assert given_options(parser_for(config_class).parse([]), config_class) == {}


def test_typed_values_have_their_type() -> None:
    words = ["--top-k", "7", "--temperature=.5e1", "--stop", "a", "--stop", "b", "--keep-stop"]
    given = given_options(parser_for(SamplingConfig).parse(words), SamplingConfig)
    assert given == {"top_k": 7, "temperature": 5.0, "stop": ("a", "b"), "keep_stop": True}
    assert given_options(parser_for(SamplingConfig).parse(["--no-keep-stop"]), SamplingConfig) == {"keep_stop": False}


# ---- plain data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_class", CONFIGS)
def test_defaults_pass_their_own_check_and_survive_as_plain_data(config_class: type[Config]) -> None:
    config = config_class(**REQUIRED.get(config_class, {}))
    check_options(config)
    plain = config_to_dict(config)
    assert all(type(value) in (str, int, float, bool, list, type(None)) for value in plain.values())
    assert config_from_dict(config_class, plain) == config


@pytest.mark.parametrize("config_class", CONFIGS)
def test_an_entry_of_the_wrong_type_is_refused_by_name(config_class: type[Config]) -> None:
    plain = config_to_dict(config_class(**REQUIRED.get(config_class, {})))
    for name in plain:
        with pytest.raises(UserError, match=f"^{flag_name(name)} must be "):
            config_from_dict(config_class, {**plain, name: {"no": "value"}})


def test_an_unknown_or_missing_entry_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"ModelConfig has no entry 'n_hed' \(did you mean n_head\?\)"):
        config_from_dict(ModelConfig, {"vocab_size": 9, "n_hed": 2})
    with pytest.raises(UserError, match="ModelConfig misses the entry 'vocab_size'"):
        config_from_dict(ModelConfig, {"n_head": 2})


@dataclasses.dataclass(frozen=True)
class Example:
    whole: int = option(1, "100% of it", at_least=1)
    share: float | None = option(None, "a share")
    words: tuple[str, ...] = option((), "some words")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"whole": True}, "--whole must be a whole number at least 1, but is True"),
        ({"whole": 1.0}, "--whole must be a whole number at least 1, but is 1.0"),
        ({"whole": None}, "--whole must be a whole number at least 1, but is None"),
        ({"share": math.nan}, "--share must be a finite number, but is nan"),
        ({"share": "1"}, "--share must be a finite number, but is '1'"),
        ({"words": "abc"}, "--words must be a tuple of values, but is 'abc'"),
        ({"words": ("a", 3)}, "--words must be a text, but is 3"),
    ],
)
def test_values_from_python_are_checked_as_those_of_flags(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_options(Example(**values))


def test_a_percent_sign_in_a_help_text_is_shown_as_it_is() -> None:
    assert "100% of it (default: 1)" in parser_for(Example).format_help()


# ---- running -----------------------------------------------------------------------------------------------------


def run(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys\nfrom command_line import *\nsys.argv = ['program.py']\ndef main():\n    {body}\nrun_program(main)"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("pass", 0, ""),
        ("raise UserError('the value 3\\n   is wrong')", 2, "program.py: the value 3 is wrong\n"),
        ("raise type('DiskError', (UserError,), {'exit_code': EXIT_DISK})('full')", 4, "program.py: full\n"),
        ("raise KeyboardInterrupt", 130, "program.py: interrupted\n"),
        ("raise BrokenPipeError", 0, ""),
        (
            "raise OSError(28, 'No space')",
            4,
            "program.py: cannot write the output: No space; free some space or choose another place\n",
        ),
        (
            "sys.modules['torch'] = None; import torch",
            2,
            f"program.py: {sys.executable} has no package torch; run: python -m pip install -r requirements.txt "
            "(`make demo` does so in .venv)\n",
        ),
        (
            "raise MissingPackageError('matplotlib', 'A plot')",
            2,
            "program.py: A plot needs the package matplotlib, which is not installed; run: pip install matplotlib\n",
        ),
    ],
)
def test_exit_code_and_message_follow_from_what_happened(body: str, code: int, stderr: str) -> None:
    result = run(body)
    assert (result.returncode, result.stderr) == (code, stderr)


def test_an_error_that_ends_at_once_waits_for_nothing_that_the_program_still_holds() -> None:
    ended = run(
        "Stuck = type('Stuck', (), {'__del__': lambda self: print('cleaned up', flush=True)})\n"
        "    held = Stuck()\n"
        "    print('half a text', end='')\n"
        "    raise type('Lost', (UserError,), {'ends_at_once': True, 'exit_code': 1})('lost contact')"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "half a text", "program.py: lost contact\n")


def test_our_own_mistake_keeps_its_traceback() -> None:
    for ours in ("raise ValueError('ours')", "raise OSError(28, 'No space', 'a file')", "import our_typo"):
        result = run(ours)
        assert result.returncode == 1
        assert "Traceback" in result.stderr


def test_a_terminal_that_cannot_show_a_character_shows_an_escape() -> None:
    result = run("print('武'); raise UserError('武')", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (result.returncode, result.stdout, result.stderr) == (2, "\\u6b66\n", "program.py: \\u6b66\n")


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe the POSIX way")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is a device of Linux")
def test_messages_that_cannot_be_written_end_nothing() -> None:
    body = "print('note', file=sys.stderr, flush=True); print('text'); raise UserError('wrong')"
    program = f"import sys\nfrom command_line import *\ndef main():\n    {body}\nrun_program(main)"
    for environment in ({}, {"PYTHONUNBUFFERED": "1"}):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=PROJECT, env={**os.environ, **environment}, check=False,
                stdout=subprocess.PIPE, stderr=full, text=True,
            )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "text\n")


def test_work_goes_on_when_nobody_reads_its_messages_any_more(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\nfrom command_line import *\n"
        "def main():\n"
        "    print('first', file=sys.stderr, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    for _ in range(9): print('more', file=sys.stderr, flush=True)\n"
        f"    pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
        "run_program(main)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stderr.readline() == "first\n"
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait() == 0
    assert (tmp_path / "done").exists()


def test_a_closed_pipe_ends_quietly() -> None:
    program = "from command_line import *\ndef main():\n    for i in range(100000): print(i)\nrun_program(main)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_a_missing_package_is_a_user_error() -> None:
    assert issubclass(MissingPackageError, UserError)
