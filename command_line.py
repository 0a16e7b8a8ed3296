"""From what a user types to checked configs, and from what went wrong to one clear line.

Every option of the project is one field of a frozen dataclass, declared with `option`. The field gives the type, the
default, the flag, the help text, the check and the entry in the checkpoint:

    @dataclass(frozen=True)
    class SamplingConfig:
        top_k: int | None = option(None, "keep the k most probable tokens (default: all)", at_least=1)

        def __post_init__(self) -> None:
            check_options(self)

    add_options(parser, SamplingConfig)                   # --top-k K
    config = SamplingConfig(**given_options(arguments, SamplingConfig))

This file lies below every room and imports none of them, nor torch, so `--help` and every wrong flag answer in a blink.
"""

import argparse
import dataclasses
import difflib
import errno
import functools
import io
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, Union

EXIT_USAGE = 2
EXIT_CHECKPOINT = 3
EXIT_DISK = 4
EXIT_DIVERGED = 5
EXIT_OUT_OF_MEMORY = 6
EXIT_RUN_IN_USE = 7
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class UserError(ValueError):
    """Something the user can put right: printed as one line without a traceback, then the program ends."""

    exit_code: int = EXIT_USAGE
    ends_at_once: bool = False
    """Whether the program must not clean up after the message: that would wait for what never comes."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message names the command that installs it."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}, which is not installed; run: pip install {package}")


class Config(Protocol):
    """Any frozen dataclass whose fields were declared with `option`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The numbers that an option allows; `above` and `below` exclude the bound itself."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def allow(self, value: float) -> bool:
        """Whether a finite value lies within the bounds."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        names = {"at_least": "at least", "at_most": "at most", "above": "above", "below": "below"}
        limits = [
            f"{words} {getattr(self, name):g}" for name, words in names.items() if getattr(self, name) is not None
        ]
        return " and ".join(limits)


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    flag: bool = True,
    group: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare one config field: its default, help text and bounds; `flag=False` keeps it off the command line.

    `group` names the heading in `--help`; a field without one belongs to the group of the field before it.
    """
    bounds = Bounds(at_least, at_most, above, below)
    metadata = {"help": help, "bounds": bounds, "flag": flag, "group": group, "metavar": metavar}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class OptionType:
    """What a field's annotation says: the scalar type, the allowed words, whether None or several are allowed."""

    scalar: type
    choices: tuple[str, ...] = ()
    optional: bool = False
    several: bool = False

    @classmethod
    def of(cls, annotation: Any) -> "OptionType":
        """Read `int`, `float`, `bool`, `str`, `Literal[...]`, `X | None` and `tuple[X, ...]`."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (Union, types.UnionType):
            (inner,) = (argument for argument in arguments if argument is not type(None))
            return dataclasses.replace(cls.of(inner), optional=True)
        if origin is tuple:
            return dataclasses.replace(cls.of(arguments[0]), several=True)
        if origin is Literal:
            return cls(str, tuple(arguments))
        return cls(annotation)


@functools.cache
def option_types(config_class: type[Config]) -> dict[str, OptionType]:
    """The type of every field of a config class, by name."""
    hints = typing.get_type_hints(config_class)
    return {field.name: OptionType.of(hints[field.name]) for field in dataclasses.fields(config_class)}


def flag_name(field_name: str) -> str:
    """The flag of a field: `n_head` is typed `--n-head`."""
    return "--" + field_name.replace("_", "-")


# ---- checking ----------------------------------------------------------------------------------------------------


def check_options(config: Config) -> None:
    """Check type, bounds and choices of every field; call it first in `__post_init__`.

    Raises UserError naming the flag, the value and what is allowed.
    """
    kinds = option_types(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if value is None and kind.optional:
            continue
        if kind.several and not isinstance(value, tuple):
            raise UserError(f"{flag_name(field.name)} must be a tuple of values, but is {value!r}")
        for item in value if kind.several else (value,):
            _check_value(flag_name(field.name), item, kind, field.metadata.get("bounds", Bounds()))


def _check_value(flag: str, value: object, kind: OptionType, bounds: Bounds) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind.scalar in (int, float):
        if not is_number or (kind.scalar is int and not isinstance(value, int)):
            raise UserError(f"{flag} must be {_describe(kind, bounds)}, but is {value!r}")
        if not bounds.allow(typing.cast(float, value)):
            raise UserError(f"{flag} must be {_describe(kind, bounds)}, but is {value}")
    elif not isinstance(value, kind.scalar) or (kind.choices and value not in kind.choices):
        raise UserError(f"{flag} must be {_describe(kind, bounds)}, but is {value!r}")


def _describe(kind: OptionType, bounds: Bounds) -> str:
    if kind.choices:
        return "one of " + ", ".join(kind.choices)
    words = {int: "a whole number", float: "a finite number", bool: "true or false"}.get(kind.scalar, "a text")
    return f"{words} {bounds}".strip()


def closest(word: str, allowed: Sequence[str]) -> str:
    """` (did you mean X?)` when an allowed word resembles the given one, else an empty string."""
    beginning_so = [name for name in allowed if name.startswith(word)]
    matches = beginning_so if len(beginning_so) == 1 else difflib.get_close_matches(word, allowed, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


# ---- plain data (checkpoints, JSON) ------------------------------------------------------------------------------


def config_to_dict(config: Config) -> dict[str, Any]:
    """A config as plain data: only str, int, float, bool, None and lists."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def config_from_dict(config_class: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """Rebuild a config from plain data; an unknown, missing or wrong entry raises UserError naming it."""
    kinds = option_types(config_class)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise UserError(f"{config_class.__name__} has no entry {unknown[0]!r}{closest(unknown[0], list(kinds))}")
    required = [field.name for field in dataclasses.fields(config_class) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise UserError(f"{config_class.__name__} misses the entry {missing[0]!r}")
    plain = {
        name: tuple(value) if kinds[name].several and isinstance(value, list) else value
        for name, value in values.items()
    }
    return config_class(**plain)


# ---- flags -------------------------------------------------------------------------------------------------------


class ArgumentParser(argparse.ArgumentParser):
    """argparse that never abbreviates, suggests the flag that was meant and answers every mistake in one line."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        # Before Python 3.14, argparse takes -1e-3 for a flag.
        self._negative_number_matcher = re.compile(r"-([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line (or the given words); anything unknown raises UserError with the nearest flag."""
        arguments, unknown = self.parse_known_args(words)
        if unknown:
            word = unknown[0].split("=")[0]
            hint = closest(word, [flag for action in self._actions for flag in action.option_strings])
            kind = "option" if word.startswith("-") else "argument"
            raise UserError(f"unknown {kind} {word!r}{hint}; see {self.prog} --help")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the whole usage."""
        if message.endswith("expected one argument"):
            message += " (one that begins with - is written behind =, as in --prompt=-x)"
        raise UserError(f"{message}; see {self.prog} --help")


def add_options(
    parser: argparse.ArgumentParser,
    config_class: type[Config],
    title: str,
    *,
    skip: Sequence[str] = (),
    show_defaults: bool = True,
) -> None:
    """Add a flag for every field of a config class, under the headings that its fields name.

    An option that the user did not type is absent from the parsed arguments, so that the caller can lay what was
    typed over a preset or over a checkpoint's own values (`given_options`).
    """
    kinds = option_types(config_class)
    group = parser.add_argument_group(title)
    for field in dataclasses.fields(config_class):
        if field.metadata.get("group"):
            group = parser.add_argument_group(field.metadata["group"])
        if field.metadata["flag"] and field.name not in skip:
            _add_option(group, field, kinds[field.name], show_default=show_defaults)


def _add_option(group: Any, field: dataclasses.Field[Any], kind: OptionType, *, show_default: bool) -> None:
    flag, default = flag_name(field.name), field.default
    help_text = field.metadata["help"].replace("%", "%%")
    if show_default and default not in (None, dataclasses.MISSING, "", ()) and "(default" not in help_text:
        shown = ("on" if default else "off") if kind.scalar is bool else default
        help_text += f" (default: {shown})"
    if kind.scalar is bool:
        group.add_argument(
            flag, dest=field.name, help=help_text, default=argparse.SUPPRESS, action=argparse.BooleanOptionalAction
        )
        return
    metavar = field.metadata["metavar"] or ("|".join(kind.choices) if kind.choices else _METAVARS[kind.scalar])
    parse = _Parse(flag, kind, field.metadata["bounds"])
    group.add_argument(
        flag, dest=field.name, help=help_text, default=argparse.SUPPRESS, metavar=metavar, action=_Store, parse=parse
    )


_METAVARS = {int: "N", float: "X", str: "TEXT"}


class _Store(argparse.Action):
    """Parse and keep the value of a flag; a flag that may be given several times collects a tuple.

    The parsing is not left to argparse's `type`, which replaces the message of any ValueError by its own.
    """

    def __init__(self, parse: "_Parse", **settings: Any) -> None:
        super().__init__(**settings)
        self.parse = parse

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        # Before Python 3.13 argparse removes the value of `--flag=--` and hands over an empty list.
        value = self.parse("--" if values == [] else values)
        if self.parse.kind.several:
            value = (*getattr(namespace, self.dest, ()), value)
        setattr(namespace, self.dest, value)


@dataclasses.dataclass(frozen=True)
class _Parse:
    """Turn the typed text of one flag into its value, or raise UserError saying what is allowed."""

    flag: str
    kind: OptionType
    bounds: Bounds

    # Python's int() and float() also take "1_000", " 7 ", "٣", "nan" and "1e999"; a flag takes plain ASCII numbers.
    NUMBER: ClassVar[dict[type, re.Pattern[str]]] = {
        int: re.compile(r"[+-]?[0-9]{1,19}", re.ASCII),
        float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII),
    }

    def __call__(self, text: str) -> object:
        value: object = text
        pattern = self.NUMBER.get(self.kind.scalar)
        if pattern is not None:
            if not pattern.fullmatch(text):
                length = " of at most 19 digits" if self.kind.scalar is int and text.lstrip("+-").isdigit() else ""
                raise UserError(f"{self.flag} must be {_describe(self.kind, self.bounds)}{length}, but is {text!r}")
            value = self.kind.scalar(text)
            if not self.bounds.allow(typing.cast(float, value)):
                raise UserError(f"{self.flag} must be {_describe(self.kind, self.bounds)}, but is {text}")
        elif self.kind.choices and text not in self.kind.choices:
            allowed = _describe(self.kind, self.bounds)
            raise UserError(f"{self.flag} must be {allowed}, but is {text!r}{closest(text, self.kind.choices)}")
        _check_value(self.flag, value, self.kind, self.bounds)
        return value


def given_options(arguments: argparse.Namespace, config_class: type[Config]) -> dict[str, Any]:
    """The fields of a config class that the user typed, by name."""
    typed = vars(arguments)
    return {field.name: typed[field.name] for field in dataclasses.fields(config_class) if field.name in typed}


# ---- running -----------------------------------------------------------------------------------------------------


def run_program(main: Callable[[], None], *, quiet: bool = False) -> NoReturn:
    """Run a script's `main` and leave with the exit code that belongs to what happened.

    A UserError is printed as one line, unless another process of the same command prints it (`quiet`); a closed pipe
    (`| head -1`) is no error, a full disk behind stdout is the user's; anything else is our bug and keeps its
    traceback.
    """
    for name in ("stdin", "stdout", "stderr"):
        # Closed by the caller (`>&-`, a service without a terminal), Python has None there.
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (as long as the program)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character (Windows code pages, LC_ALL=C) shows an escape instead of failing.
        typing.cast(Any, stream).reconfigure(errors="backslashreplace")
    _let_messages_get_lost()
    program = Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        if not quiet:
            print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        if error.ends_at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if not quiet:
            print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        # Whoever types `python` where the project's own Python was meant.
        if error.name not in _CORE_PACKAGES:
            raise
        advice = "run: python -m pip install -r requirements.txt (`make demo` does so in .venv)"
        print(f"{program}: {sys.executable} has no package {error.name}; {advice}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except BrokenPipeError:
        _abandon_stdout()
    except OSError as error:
        # What stdout refuses names no file, unlike the files that a program opens.
        if error.errno not in _DISK_ERRORS or error.filename is not None:
            raise
        advice = "free some space or choose another place"
        print(f"{program}: cannot write the output: {error.strerror}; {advice}", file=sys.stderr)
        _abandon_stdout()
        sys.exit(EXIT_DISK)
    sys.exit(0)


class _MessageFile(io.FileIO):
    """Takes what is written also when nobody reads it any more, or the disk behind it is full."""

    def write(self, data: Any, /) -> int:
        """All of `data`, or what the system takes of it."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _let_messages_get_lost() -> None:
    """Go on when stderr fails: its lines tell about the work, whose result is worth more than they are."""
    binary = getattr(sys.stderr, "buffer", None)
    # A console of Windows is no plain file; it has its own way to show characters.
    if type(getattr(binary, "raw", binary)) is io.FileIO:
        file = _MessageFile(sys.stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(
            file,
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
            write_through=True,
        )


_CORE_PACKAGES = ("torch", "numpy", "tiktoken", "tokenizers", "tqdm")
_DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", None))


def _abandon_stdout() -> None:
    """Python would complain once more when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
