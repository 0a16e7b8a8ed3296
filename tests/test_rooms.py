"""The rooms import one way only, and nothing in the tree is named or built in a way that bites later."""

import ast
import functools
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = ("data", "model", "generation", "training")
SCRIPTS = ("train", "generate", "convert")
MAY_IMPORT = {
    "command_line": set[str](),
    "data": {"command_line"},
    "model": {"command_line"},
    "generation": {"command_line", "data", "model"},
    "training": {"command_line", "data", "model", "generation"},
}
FILES = sorted(
    path.relative_to(PROJECT)
    for pattern in ["*.py", *(f"{folder}/**/*.py" for folder in [*ROOMS, "benchmarks", "docs", "tests"])]
    for path in PROJECT.glob(pattern)
)
OURS = [path for path in FILES if path.parts[0] != "tests"]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((PROJECT / path).read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file, by its full name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it leads to"
            yield node.module or ""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_one_way(room: str) -> None:
    ours = {*ROOMS, *SCRIPTS, "command_line", "benchmarks", "docs", "tests"}
    files = [path for path in OURS if path.parts[0] in (room, f"{room}.py")]
    assert files
    for path in files:
        rooms = {name.split(".")[0] for name in imported(path)} & ours
        assert rooms - {room} <= MAY_IMPORT[room], path


def test_a_rooms_init_file_holds_only_its_docstring() -> None:
    for room in ROOMS:
        body = tree(Path(room, "__init__.py")).body
        assert [type(node) for node in body] == [ast.Expr], f"{room}/__init__.py"


@pytest.mark.parametrize(
    "module", ["command_line", "model.config", "model.cost", "training.config", "generation.config"]
)
def test_configs_answer_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False).returncode == 0


@pytest.mark.parametrize("script", [name for name in SCRIPTS if (PROJECT / f"{name}.py").exists()])
def test_help_answers_without_torch(script: str) -> None:
    program = (
        f"import runpy, sys; sys.argv = ['{script}.py', '--help']\n"
        f"try: runpy.run_path('{script}.py', run_name='__main__')\n"
        "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage:")


def test_no_file_or_folder_is_a_drawer_for_everything() -> None:
    for path in FILES:
        assert not {"utils", "util", "helpers", "helper", "common", "misc"} & {*path.parts, path.stem}, path


def test_no_top_level_name_hides_a_module_of_python_or_of_a_package() -> None:
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    for name in {path.parts[0].removesuffix(".py") for path in FILES} - {"tests"}:
        assert name not in installed, name


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in FILES if path.parts[0] == "tests" and path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", OURS, ids=str)
def test_nothing_in_the_program_can_run_foreign_code(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"dill", "cloudpickle", "marshal", "shelve"}
    for name, call in calls(path):
        # Writing nanoGPT's vocabulary in its own format is the one use; an exception of pickle may be named anywhere.
        assert not name.startswith("pickle.") or (name, path.parts[0]) == ("pickle.dump", "benchmarks"), path
        assert name not in {"eval", "exec", "os.system", "os.popen"}, f"{path}:{call.lineno}"
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        shell = given.get("shell")
        assert shell is None or ast.unparse(shell) == "False", f"{path}:{call.lineno}"
        if name == "torch.load":
            assert "weights_only" in given, f"{path}:{call.lineno}"
            assert ast.unparse(given["weights_only"]) == "True", f"{path}:{call.lineno}"
