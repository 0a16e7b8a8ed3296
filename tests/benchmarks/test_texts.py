"""The made-up texts are as large as asked, the same for the same seed, and have ever new words."""

import time
from pathlib import Path

import pytest

from benchmarks.memory import peak_anonymous_bytes
from benchmarks.texts import write_text
from command_line import UserError
from data.sources import open_source


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    write_text(path, 300_000)
    return path


def test_the_text_is_as_large_as_asked_and_reads_as_documents(path: Path) -> None:
    assert 300_000 <= path.stat().st_size < 302_000
    documents = list(open_source(str(path)).documents())
    assert {len(document.split()) for document in documents} == {120}


def test_the_same_seed_gives_the_same_text(path: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "again.txt", 300_000)
    write_text(tmp_path / "other.txt", 300_000, seed=1)
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()
    assert (tmp_path / "other.txt").read_bytes() != path.read_bytes()


def test_new_words_keep_coming_as_in_language(path: Path) -> None:
    words = path.read_text(encoding="ascii").split()
    half = len(words) // 2
    assert len(set(words)) > 1.3 * len(set(words[:half]))
    assert len(set(words)) < 0.5 * len(words)


def test_the_peak_sees_memory_that_is_gone_again() -> None:
    try:
        before = peak_anonymous_bytes(lambda: None)
    except UserError as error:
        pytest.skip(str(error))

    def work() -> None:
        block = bytearray(b"x") * 80_000_000
        time.sleep(1.0)  # the watcher looks a hundred times
        assert len(block) == 80_000_000

    assert peak_anonymous_bytes(work) > before + 70_000_000
