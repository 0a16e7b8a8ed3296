"""Logits processors and stopping criteria from the user's own files: `my_rules.py:NoQuestions(words=3)`."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

from command_line import UserError, closest
from data.tokenizers.base import Tokenizer

_FORM = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)(?P<arguments>\(.*\))?", re.DOTALL)


def load_extension(flag: str, text: str, tokenizer: Tokenizer) -> Any:
    """Build the object that `PATH.py:Class(name=value, …)` names; its `tokenizer` parameter, if any, gets ours.

    Runs the file as Python does, so only give it files that you would run. Raises UserError when the file, the class
    or its arguments are not there; what the user's own code raises passes.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f"{flag} must look like PATH.py:Class or PATH.py:Class(name=value, ...), but is {text!r}")
    factory = load_name(flag, Path(match["path"]), match["name"])
    arguments = _parse_arguments(flag, text, match["arguments"] or "()")
    signature = inspect.signature(factory)
    if "tokenizer" in signature.parameters:
        arguments["tokenizer"] = tokenizer
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{flag} {text!r}: {match['name']}{signature} has {error}") from None
    return factory(**arguments)


def load_name(flag: str, path: Path, name: str) -> Any:
    """The class or function of this name that a Python file defines; raises UserError when it is not there."""
    if not path.is_file():
        raise UserError(f"{flag}: there is no file {str(path)!r}; give the path of a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise UserError(f"{flag}: {str(path)!r} defines no {name!r}{closest(name, public)}")
    return getattr(module, name)


def _parse_arguments(flag: str, text: str, arguments: str) -> dict[str, Any]:
    """The values of `(name=value, …)`; only literals, nothing is evaluated."""
    try:
        call = ast.parse(f"_{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(f"{flag} {text!r}: arguments must look like (name=value, ...) with plain values") from None
