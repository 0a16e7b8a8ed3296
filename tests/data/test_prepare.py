"""A corpus becomes the same tokens however it is prepared, is prepared once, and again when anything changed."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import EXIT_DISK, UserError
from data import documents, tokenization
from data.prepare import PreparedCorpus, prepare_corpus
from data.shards import HEADER_BYTES, DiskError
from data.sources import open_source
from data.split import Split, choose_split, in_validation, read_facts
from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.registry import tokenizer_hash

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared"
TALES = (PROJECT / "data/tales/en/bright.txt").read_text(encoding="utf-8").split(f"\n{END_OF_TEXT}\n")[:-1]


def prepare(
    folder: Path, text: str, choice: str = "byte", *, context_length: int = 16, **options: Any
) -> PreparedCorpus:
    """Write a text to a file and prepare it with a cache in the same folder."""
    (folder / "text.txt").write_bytes(text.encode("utf-8"))
    return prepare_corpus(
        open_source(str(folder / "text.txt")),
        choice,
        context_length=context_length,
        cache_folder=folder / "tokens",
        **options,
    )


def joined(tales: list[str]) -> str:
    return "".join(f"{tale}\n{END_OF_TEXT}\n" for tale in tales)


def encoded(tokenizer: Tokenizer, tales: list[str]) -> list[int]:
    return [token_id for tale in tales for token_id in [*tokenizer.encode(tale), tokenizer.end_of_text]]


def all_tokens(corpus: PreparedCorpus) -> tuple[list[int], list[int]]:
    return (
        corpus.training.tokens(0, len(corpus.training)).tolist(),
        corpus.validation.tokens(0, len(corpus.validation)).tolist(),
    )


# ---- split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["byte", "char", "bpe:400"])
def test_each_document_is_in_one_part_and_ends_with_end_of_text(tmp_path: Path, choice: str) -> None:
    corpus = prepare(tmp_path, joined(TALES), choice)
    training = [tale for number, tale in enumerate(TALES) if not in_validation(number, 0.1)]
    validation = [tale for number, tale in enumerate(TALES) if in_validation(number, 0.1)]
    assert list(corpus.training_documents()) == training
    assert list(corpus.validation_documents()) == validation
    tokens, held_out = all_tokens(corpus)
    assert tokens == encoded(corpus.tokenizer, training)
    assert held_out == [corpus.tokenizer.end_of_text, *encoded(corpus.tokenizer, validation)]
    assert corpus.documents == len(TALES)
    assert corpus.validation_bytes == len("".join(validation).encode())
    assert corpus.training_bytes == len("".join(training).encode())
    assert corpus.corpus_bytes == corpus.training_bytes + corpus.validation_bytes
    assert 0.08 < corpus.validation_bytes / corpus.corpus_bytes < 0.12


def test_the_split_does_not_depend_on_the_tokenizer(tmp_path: Path) -> None:
    parts = {tuple(prepare(tmp_path, joined(TALES), choice).validation_documents()) for choice in ("byte", "bpe:300")}
    assert len(parts) == 1


def test_a_single_document_is_split_as_nanogpt_splits_it(tmp_path: Path) -> None:
    text = "".join(random.Random(1).choices("ab字é\n ", k=12_347))
    corpus = prepare(tmp_path, text, "char")
    border = int(len(text) * 0.9)  # nanoGPT, data/shakespeare_char/prepare.py
    assert "".join(corpus.training_documents()) == text[:border]
    assert "".join(corpus.validation_documents()) == text[border:]
    training, validation = all_tokens(corpus)
    assert training == corpus.tokenizer.encode(text[:border])
    assert validation == [*corpus.tokenizer.encode(text[border:]), corpus.tokenizer.end_of_text]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/corpora is not here")
def test_tinyshakespeare_has_nanogpts_token_counts(tmp_path: Path) -> None:
    source = open_source(str(SHARED / "corpora" / "tinyshakespeare.txt"))
    corpus = prepare_corpus(source, "char", context_length=64, cache_folder=tmp_path)
    assert corpus.tokenizer.vocab_size == 65 + 1  # and end of text
    assert (corpus.n_training_tokens, corpus.n_validation_tokens) == (1_003_854, 111_540 + 1)


def test_few_documents_are_split_by_characters(tmp_path: Path) -> None:
    corpus = prepare(tmp_path, joined(TALES[:20]))
    assert corpus.split.cut == int(sum(map(len, TALES[:20])) * 0.9)
    together = [*corpus.training_documents(), *corpus.validation_documents()]
    assert "".join(together) == "".join(TALES[:20])
    training, validation = all_tokens(corpus)
    assert training + validation == encoded(corpus.tokenizer, TALES[:20])


def test_a_hash_that_hits_one_huge_document_falls_back_to_characters() -> None:
    number = next(number for number in range(1000) if in_validation(number, 0.1))
    pieces = [documents.Piece("x" * (10_000 if i == number else 5), ends_document=True) for i in range(200)]
    assert choose_split(read_facts(pieces, 0.1), 0.1).cut == int(0.9 * (199 * 5 + 10_000))
    even = [documents.Piece("x" * 50, ends_document=True) for _ in range(200)]
    assert choose_split(read_facts(even, 0.1), 0.1).cut is None


def test_a_hash_that_hits_only_short_documents_falls_back_to_characters() -> None:
    pieces = [documents.Piece("x" * (5 if in_validation(i, 0.1) else 100), ends_document=True) for i in range(200)]
    facts = read_facts(pieces, 0.1)
    assert 0 < facts.hashed_bytes < 0.05 * facts.bytes
    assert choose_split(facts, 0.1).cut == int(0.9 * facts.characters)


@pytest.mark.parametrize("length", range(1, 130, 3))
def test_both_parts_hold_a_window_or_an_error_says_what_to_lower(tmp_path: Path, length: int) -> None:
    text = ("word " * 100)[:length]
    if length + 1 < 2 * 17:
        advice = r"lower --context-length \(now 16\) to" if length >= 2 else "give more text"
        with pytest.raises(UserError, match=rf"has {length + 1} tokens.* {advice}"):
            prepare(tmp_path, text, context_length=16)
    else:
        corpus = prepare(tmp_path, text, context_length=16)
        assert min(corpus.n_training_tokens, corpus.n_validation_tokens) >= 17


def test_the_context_length_that_an_error_proposes_works(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower --context-length \(now 500\) to 133 or less"):
        prepare(tmp_path, "word " * 80, context_length=500)
    assert prepare(tmp_path, "word " * 80, context_length=133).n_validation_tokens >= 134


def test_a_text_long_enough_of_which_nothing_is_left_to_train_on_gets_the_right_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"each; lower --validation-fraction \(now 0.999\)$"):
        prepare(tmp_path, "word " * 80, context_length=64, validation_fraction=0.999)


def test_white_space_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no text \(only white space\)"):
        prepare(tmp_path, " \n \n")


def test_the_cut_may_fall_anywhere() -> None:
    pieces = [documents.Piece("abc", True), documents.Piece("de", False), documents.Piece("", True)]
    for cut in range(6):
        parts = list(Split(0.1, cut).parts(pieces))
        assert "".join(piece.text for piece, _ in parts) == "abcde"
        assert "".join(piece.text for piece, validates in parts if validates) == "abcde"[cut:]
        assert sum(piece.ends_document for piece, _ in parts) == 2
    # A cut between two documents leaves the end of the first one with it.
    assert next(Split(0.1, 3).parts(pieces)) == (pieces[0], False)


# ---- tokenising --------------------------------------------------------------------------------------------------


def test_parallel_equals_serial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "JOB_CHARACTERS", 2000)
    serial = prepare(tmp_path, joined(TALES), "bpe:400", workers=1)
    (tmp_path / "parallel").mkdir()
    parallel = prepare(tmp_path / "parallel", joined(TALES), "bpe:400", workers=4)
    assert not parallel.was_cached
    assert all_tokens(serial) == all_tokens(parallel)


def test_a_document_in_pieces_has_the_ids_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(TALES)
    whole = prepare(tmp_path, text, "bpe:400")
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 3000)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 1000)
    (tmp_path / "pieces").mkdir()
    pieces = prepare(tmp_path / "pieces", text, "bpe:400")
    # The merges may differ by the words at the borders of what the trainer is given; the tokens must not.
    again = prepare(tmp_path / "pieces", text, tokenizer=whole.tokenizer)
    assert pieces.n_training_tokens > 1000
    assert all_tokens(again) == all_tokens(whole)


def test_the_tokenizer_learns_from_the_training_part_only(tmp_path: Path) -> None:
    tales = [*TALES[:300]]
    number = next(number for number in range(300) if in_validation(number, 0.1))
    tales[number] = "qzqzqz " * 200
    corpus = prepare(tmp_path, joined(tales), "bpe:300")
    assert not any(b"qz" in corpus.tokenizer.token_bytes(token_id) for token_id in range(corpus.tokenizer.vocab_size))


def test_char_knows_the_characters_of_the_validation_part(tmp_path: Path) -> None:
    corpus = prepare(tmp_path, "a" * 900 + "字" * 100, "char")
    assert corpus.tokenizer.decode(all_tokens(corpus)[1]) == "字" * 100


def test_end_of_text_within_a_line_trains_as_ordinary_text(tmp_path: Path) -> None:
    corpus = prepare(tmp_path, f"a {END_OF_TEXT} b " * 50, "bpe:300")
    training, validation = all_tokens(corpus)
    assert corpus.tokenizer.end_of_text not in training
    assert validation.count(corpus.tokenizer.end_of_text) == 1


class BeginningTokenizer:
    """Bytes, with a token that begins every document, as Llama's tokenizers have."""

    name, vocab_size, end_of_text = "begin", 258, 256
    begin_of_text: int | None = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_id for token_id in token_ids if token_id < 256).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def state(self) -> dict[str, Any]:
        return {"kind": "byte", "version": 1, "begins": True}


def test_begin_of_text_stands_before_every_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "JOB_CHARACTERS", 100)
    corpus = prepare(tmp_path, joined(TALES), tokenizer=BeginningTokenizer())
    training, validation = all_tokens(corpus)
    assert validation[:2] == [256, 257]
    for tokens in (training, validation[1:]):
        begins = [i for i, token_id in enumerate(tokens) if token_id == 257]
        assert begins == [0, *(i + 1 for i, token_id in enumerate(tokens[:-1]) if token_id == 256)]


def test_begin_of_text_never_stands_within_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "JOB_CHARACTERS", 1)  # every piece is a job of its own
    pieces = [documents.Piece("ab", False), documents.Piece("c", True), documents.Piece("d", True)]
    runs = tokenization.tokenise([(piece, False) for piece in pieces], BeginningTokenizer(), workers=1)
    assert [run.token_ids.tolist() for run in runs] == [[257, 97, 98], [99, 256], [257, 100, 256]]


# ---- the cache ---------------------------------------------------------------------------------------------------


def test_the_second_time_it_is_only_opened(tmp_path: Path) -> None:
    first, second = (prepare(tmp_path, joined(TALES), "bpe:300") for _ in range(2))
    assert (first.was_cached, second.was_cached) == (False, True)
    assert all_tokens(first) == all_tokens(second)
    assert tokenizer_hash(first.tokenizer) == tokenizer_hash(second.tokenizer)
    assert (first.corpus_bytes, first.validation_bytes, first.documents, first.split) == (
        second.corpus_bytes,
        second.validation_bytes,
        second.documents,
        second.split,
    )


def test_one_changed_byte_prepares_it_again(tmp_path: Path) -> None:
    before = prepare(tmp_path, joined(TALES))
    after = prepare(tmp_path, joined(TALES).replace("crab", "crub", 1))
    assert not after.was_cached
    assert before.corpus_hash != after.corpus_hash
    assert all_tokens(before) != all_tokens(after)


@pytest.mark.parametrize(
    "options",
    [
        {"choice": "char"},
        {"validation_fraction": 0.2},
        {"tokenizer": BeginningTokenizer()},
    ],
)
def test_another_tokenizer_or_split_prepares_it_again(tmp_path: Path, options: dict[str, Any]) -> None:
    prepare(tmp_path, joined(TALES))
    assert not prepare(tmp_path, joined(TALES), **options).was_cached


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, shorten, Path.unlink])
@pytest.mark.parametrize("name", ["training-00000.tokens", "validation-00000.tokens", "corpus.json"])
def test_damage_is_found_said_and_repaired(
    tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    good = all_tokens(prepare(tmp_path, joined(TALES[:150])))
    (path,) = tmp_path.glob(f"tokens/*/{name}")
    damage(path)
    corpus = prepare(tmp_path, joined(TALES[:150]))
    assert not corpus.was_cached
    assert all_tokens(corpus) == good
    assert name in capsys.readouterr().err
    assert prepare(tmp_path, joined(TALES[:150])).was_cached


PREPARE = """
import hashlib, pathlib, sys
from data.prepare import prepare_corpus
from data.sources import open_source
folder = pathlib.Path(sys.argv[1])
source = open_source(str(folder / "text.txt"))
corpus = prepare_corpus(source, "byte", context_length=16, cache_folder=folder / "tokens")
print(hashlib.sha256(corpus.training.tokens(0, len(corpus.training)).tobytes()).hexdigest())
"""


def test_processes_may_prepare_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(joined(TALES), encoding="utf-8")
    processes = [
        subprocess.Popen([sys.executable, "-c", PREPARE, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(answers)) == 1
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_a_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"text " * 1000 + b"\xff")
    source = open_source(str(tmp_path / "bad.txt"))
    with pytest.raises(UserError, match="not UTF-8"):
        prepare_corpus(source, "byte", context_length=16, cache_folder=tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a file, not a folder")
    with pytest.raises(DiskError, match=r"cannot write .*tokens") as caught:
        prepare(tmp_path, joined(TALES[:5]))
    assert caught.value.exit_code == EXIT_DISK


def test_a_vocabulary_beyond_65535_takes_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (SHARED / "tiktoken_cache").is_dir():
        pytest.skip("tiktoken's files (../shared/tiktoken_cache) are not here")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    text = joined([*TALES, "supercalifragilistic ↹ 鸜鹆 🦖"] * 2)
    corpus = prepare(tmp_path, text, "cl100k_base")
    assert corpus.training.tokens(0, 1).dtype == np.uint32
    assert corpus.training.paths[0].stat().st_size == HEADER_BYTES + 4 * corpus.n_training_tokens
    assert max(all_tokens(corpus)[0]) > 1 << 16
    assert all_tokens(corpus)[0] == encoded(corpus.tokenizer, list(corpus.training_documents()))


MEMORY_OF_PREPARING = """
import random, sys
from pathlib import Path

from benchmarks.memory import anonymous_bytes
from data.prepare import prepare_corpus
from data.sources import open_source
import tokenizers

folder = Path(sys.argv[1])
letters = random.Random(0)
words = ("".join(letters.choices("abcdefghij", k=9)) for _ in range(200_000))
(folder / "text.txt").write_text(" ".join(words))
del words
before = anonymous_bytes()
prepare_corpus(
    open_source(str(folder / "text.txt")), "bpe:300", context_length=8, cache_folder=folder / "tokens", progress=False
)
print(anonymous_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
def test_what_counting_words_took_is_given_back(tmp_path: Path) -> None:
    # The counts of 200,000 different words take 150 MB, which training would have to do without.
    command = [sys.executable, "-c", MEMORY_OF_PREPARING, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000_000
