"""A compiled library is used again as long as it belongs to this very source, compiler and processor, else never."""

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import UserError
from model.compiling import compiled_library

COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

Answer = Callable[[], int]


def write_source(folder: Path, number: int) -> Path:
    source = folder / "answer.cpp"
    source.write_text(f'extern "C" int answer() {{ return {number}; }}\n', encoding="ascii")
    return source


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down what it compiles; extra lines in `processor` are macros of its processor."""
    path = tmp_path / "c++"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n*-dM*) cat {tmp_path}/processor ;;\n*) echo compiled >> {tmp_path}/log ;;\nesac\n'
        f'exec {COMPILER} "$@"\n'
    )
    path.chmod(0o755)
    (tmp_path / "processor").touch()
    (tmp_path / "log").touch()
    monkeypatch.setenv("CXX", str(path))
    return path


def n_compiled(compiler: Path) -> int:
    return len(compiler.with_name("log").read_text().splitlines())


def answer(source: Path) -> int:
    function: Answer = compiled_library(source, "").answer
    return function()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("__pycache__/answer-*.so"))


def test_a_second_start_compiles_nothing(compiler: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path, 42)
    assert [answer(source), answer(source)] == [42, 42]
    assert n_compiled(compiler) == 1
    assert [path.name for path in (tmp_path / "__pycache__").iterdir()] == [kept(tmp_path)[0].name]


def test_another_source_or_processor_compiles_anew_and_the_first_is_still_good(compiler: Path, tmp_path: Path) -> None:
    assert answer(write_source(tmp_path, 1)) == 1
    assert answer(write_source(tmp_path, 2)) == 2
    (tmp_path / "processor").write_text("#define __ANOTHER_PROCESSOR__ 1\n")
    assert answer(write_source(tmp_path, 2)) == 2
    assert n_compiled(compiler) == len(kept(tmp_path)) == 3
    (tmp_path / "processor").write_text("")
    assert answer(write_source(tmp_path, 1)) == 1
    assert n_compiled(compiler) == 3


@pytest.mark.parametrize("n_bytes", [0, 100, 4096, -4096, -1])
def test_a_damaged_library_is_compiled_again(compiler: Path, tmp_path: Path, n_bytes: int) -> None:
    source = write_source(tmp_path, 7)
    assert answer(source) == 7
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:n_bytes])
    assert answer(source) == 7
    assert n_compiled(compiler) == 2
    ctypes.CDLL(str(path))


def test_a_library_that_cannot_be_loaded_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = tmp_path / "c++"
    nothing.write_text("#!/bin/sh\nexit 0\n")
    nothing.chmod(0o755)
    monkeypatch.setenv("CXX", str(nothing))
    with pytest.raises(UserError, match=r"made of answer.cpp cannot be loaded; set CXX to another compiler, or walk"):
        compiled_library(write_source(tmp_path, 1), "or walk")


def test_where_nothing_can_be_kept_every_start_compiles(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "__pycache__").write_text("in the way")
    source = write_source(tmp_path, 3)
    assert [answer(source), answer(source)] == [3, 3]
    assert n_compiled(compiler) == 2


def test_what_does_not_compile_is_said_and_leaves_nothing(compiler: Path, tmp_path: Path) -> None:
    source = tmp_path / "answer.cpp"
    source.write_text("no C++\n")
    with pytest.raises(UserError, match=r"could not compile answer.cpp \(.*\); set CXX to another compiler, or walk"):
        compiled_library(source, "or walk")
    assert kept(tmp_path) == []
