"""Whatever holds text is read as documents; whatever does not is named in one clear line."""

import codecs
import gzip
import hashlib
import io
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import UserError
from data import corpora, documents
from data.corpora import PUBLIC
from data.documents import join_pieces, text_pieces
from data.sources import Source, open_source
from data.tokenizers.base import END_OF_TEXT

PROJECT = Path(__file__).parents[2]
CORPORA = PROJECT.parent / "shared" / "corpora"


def source_of(folder: Path, content: bytes, name: str = "text.txt") -> Source:
    (folder / name).write_bytes(content)
    return open_source(str(folder / name))


def read(folder: Path, content: str | bytes, name: str = "text.txt") -> list[str]:
    raw = content.encode("utf-8") if isinstance(content, str) else content
    return list(source_of(folder, raw, name).documents())


# ---- documents of a text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n", ["one\n"]),
        (f"one\n{END_OF_TEXT}\ntwo\n{END_OF_TEXT}\n", ["one", "two"]),
        (f"one\n{END_OF_TEXT}\ntwo", ["one", "two"]),
        (f"one\n{END_OF_TEXT}\ntwo\n", ["one", "two\n"]),
        (f"one\n{END_OF_TEXT}", ["one"]),
        (f"one\r\n{END_OF_TEXT}\r\ntwo\r\n", ["one", "two\r\n"]),
        (f"one\n\n{END_OF_TEXT}\n\ntwo", ["one\n", "\ntwo"]),
        (f"{END_OF_TEXT}\n{END_OF_TEXT}\none\n{END_OF_TEXT}\n \n{END_OF_TEXT}\n", ["one"]),
        (
            f"a {END_OF_TEXT}\n{END_OF_TEXT} b\n {END_OF_TEXT}\n",
            [f"a {END_OF_TEXT}\n{END_OF_TEXT} b\n {END_OF_TEXT}\n"],
        ),
        ("old\rmac\r", ["old\rmac\r"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_a_line_that_is_exactly_end_of_text_ends_a_document(text: str, expected: list[str]) -> None:
    for size in (1, 2, 3, 7, 1000):  # however the text comes in
        blocks = [text[i : i + size] for i in range(0, len(text), size)]
        assert list(join_pieces(text_pieces(blocks))) == expected


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(st.sampled_from([END_OF_TEXT, "\n", "\r\n", "a", "bc d", "。", " "])).map("".join),
    st.integers(1, 20),
    st.integers(40, 80),
)
def test_documents_do_not_depend_on_block_and_piece_size(text: str, block: int, piece: int) -> None:
    whole = list(join_pieces(text_pieces([text])))
    before = documents.PIECE_CHARACTERS
    documents.PIECE_CHARACTERS = piece
    try:
        cut = list(join_pieces(text_pieces([text[i : i + block] for i in range(0, len(text), block)])))
    finally:
        documents.PIECE_CHARACTERS = before
    # A long white-space document is recognised as such only when it fits into one piece.
    assert [document for document in cut if document.strip()] == whole


@pytest.mark.parametrize("block", [1, 5, 64])
def test_a_separator_is_seen_wherever_a_piece_ends(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 40)
    for length in range(1, 120):
        before = "。" * length  # nowhere a place to cut but at the limit
        for text, expected in [
            (f"{before}\r\n{END_OF_TEXT}\r\nx", [before, "x"]),
            (f"{before}{END_OF_TEXT}\n{'。' * 60}", [f"{before}{END_OF_TEXT}\n{'。' * 60}"]),
            (f"{before}{END_OF_TEXT}", [f"{before}{END_OF_TEXT}"]),
        ]:
            blocks = [text[i : i + block] for i in range(0, len(text), block)]
            assert list(join_pieces(text_pieces(blocks))) == expected


def test_a_huge_document_travels_in_bounded_pieces(tmp_path: Path) -> None:
    content = "word and more words\n" * 100_000
    source = source_of(tmp_path, content.encode())
    pieces = list(source.pieces())
    assert len(pieces) > 2
    assert max(len(piece.text) for piece in pieces) <= 2 * documents.PIECE_CHARACTERS
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == content


# ---- kinds of sources --------------------------------------------------------------------------------------------


def test_newlines_are_kept_and_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert read(tmp_path, codecs.BOM_UTF8 + b"a\r\nb\rc\n\n") == ["a\r\nb\rc\n\n"]
    assert read(tmp_path, "a\ufeffb") == ["a\ufeffb"]


def test_characters_across_block_borders_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BLOCK_BYTES", 7)
    text = "x字é😀 " * 50
    assert read(tmp_path, text) == [text]


def test_a_source_can_be_read_again(tmp_path: Path) -> None:
    source = source_of(tmp_path, b"one\n<|endoftext|>\ntwo")
    assert list(source.documents()) == list(source.documents()) == ["one", "two"]
    assert source.fingerprint() == hashlib.sha256(b"one\n<|endoftext|>\ntwo").hexdigest()


def test_a_folder_is_read_in_order_and_each_file_is_a_document(tmp_path: Path) -> None:
    for name, text in {"b.txt": "B", "a/z.md": "AZ", "a/y.txt": f"Y1\n{END_OF_TEXT}\nY2", ".git/x": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "lines.jsonl").write_text('{"text": "J1"}\n{"text": "J2"}\n')
    source = open_source(str(tmp_path))
    assert list(source.documents()) == ["B", "J1", "J2", "Y1", "Y2", "AZ"]
    assert source.skipped == ("picture.png",)
    before = source.fingerprint()
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert open_source(str(tmp_path)).fingerprint() != before


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    assert read(tmp_path, gzip.compress("grüße".encode()), "t.txt.gz") == ["grüße"]
    assert read(tmp_path, gzip.compress(b'{"text": "j"}\n'), "t.jsonl.gz") == ["j"]


def test_json_lines_give_one_document_each(tmp_path: Path) -> None:
    lines = [{"text": "a\nb", "n": 1}, {"text": f"x\n{END_OF_TEXT}\ny"}, {"text": " "}, {"text": "字"}]
    content = "\n\n".join(json.dumps(line) for line in lines)
    assert read(tmp_path, content, "t.jsonl") == ["a\nb", f"x\n{END_OF_TEXT}\ny", "字"]
    path = tmp_path / "named.jsonl"
    path.write_text('{"story": "s"}')
    assert list(open_source(str(path), text_field="story").documents()) == ["s"]
    assert open_source(str(path)).fingerprint() != open_source(str(path), text_field="story").fingerprint()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "gbk", "shift_jis", "cp1252"])
def test_other_encodings_are_read_when_named(tmp_path: Path, encoding: str) -> None:
    text = {"gbk": "汉字文本", "shift_jis": "日本語"}.get(encoding, "Grüße, señor") * 30
    (tmp_path / "t.txt").write_bytes(text.encode(encoding))
    assert list(open_source(str(tmp_path / "t.txt"), encoding=encoding).documents()) == [text]
    with pytest.raises(UserError, match=r"t\.txt is (not UTF-8|UTF-\d\d, not UTF-8|not a text file)"):
        list(open_source(str(tmp_path / "t.txt")).documents())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_byte_order_mark_is_no_text_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = "字\ufeff字"  # within a text it is a character
    marked = text if encoding in ("utf-8-sig", "utf-16") else "\ufeff" + text
    (tmp_path / "t.txt").write_bytes(marked.encode(encoding))
    assert list(open_source(str(tmp_path / "t.txt"), encoding=encoding).documents()) == [text]


def test_utf_16_without_a_byte_order_mark_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("héllo".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"t\.txt is not UTF-16 \(.*BOM.*\).*such as utf-16-le"):
        list(open_source(str(tmp_path / "t.txt"), encoding="utf-16").documents())


def test_text_in_another_encoding_is_not_left_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes("two".encode("utf-16"))
    with pytest.raises(UserError, match=r"b\.txt is UTF-16, not UTF-8; add --encoding utf-16, or save it as UTF-8"):
        list(open_source(str(tmp_path)).documents())


def test_standard_input_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("één\n".encode())))
    source = open_source("-")
    assert source.name == "standard input"
    assert list(source.documents()) == list(source.documents()) == ["één\n"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="standard input is empty"):
        open_source("-")


# ---- known corpora -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("tales-en", 1726), ("tales-zh", 978), ("tales", 2704)])
def test_the_shipped_tales(name: str, count: int) -> None:
    tales = list(open_source(name).documents())
    assert len(tales) == count
    assert not any(END_OF_TEXT in tale or tale != tale.strip() for tale in tales)


@pytest.mark.skipif(not CORPORA.is_dir(), reason="../shared/corpora is not here")
@pytest.mark.parametrize("name", ["tinyshakespeare", "the-verdict"])
def test_public_corpora_have_the_checksum_of_their_copies(name: str) -> None:
    assert hashlib.sha256((CORPORA / f"{name}.txt").read_bytes()).hexdigest() == PUBLIC[name].sha256


def serve(monkeypatch: pytest.MonkeyPatch, body: bytes, length: int | None = None) -> list[str]:
    """Answer every download with `body`; returns the list of addresses asked for."""
    asked: list[str] = []

    class Response(io.BytesIO):
        headers = {"Content-Length": str(len(body) if length is None else length)}  # noqa: RUF012

    def urlopen(request: urllib.request.Request, timeout: float) -> Response:
        assert timeout > 0
        asked.append(request.full_url)
        return Response(body)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_a_public_corpus_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"some text"
    known = corpora.PublicCorpus("https://example.org/t.txt", hashlib.sha256(body).hexdigest(), "a test")
    monkeypatch.setitem(PUBLIC, "the-verdict", known)
    asked = serve(monkeypatch, body)
    for _ in range(2):
        assert corpora.fetch_corpus("the-verdict", tmp_path).read_bytes() == body
    assert asked == [known.url]
    (tmp_path / "the-verdict.txt").write_bytes(b"other")
    with pytest.raises(UserError, match=r"the-verdict\.txt is not the known text .*delete it"):
        corpora.fetch_corpus("the-verdict", tmp_path)


def test_a_download_with_another_checksum_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"an error page")
    with pytest.raises(UserError, match=r"not the known text \(SHA-256 [0-9a-f]{64} instead of .*by hand"):
        corpora.fetch_corpus("tinyshakespeare", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_cut_short_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"half", length=8)
    with pytest.raises(UserError, match="ended after 4 of 8 bytes"):
        corpora.fetch_url("https://example.org/a/text.jsonl", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_address_keeps_the_kind_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b'{"text": "from afar"}')
    monkeypatch.setattr("data.sources.fetch_url", lambda url: corpora.fetch_url(url, tmp_path))
    source = open_source("https://example.org/a/some%20text.jsonl?x=1")
    assert list(source.documents()) == ["from afar"]
    assert source.name == "https://example.org/a/some%20text.jsonl?x=1"


def test_without_a_network_one_line_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"cannot fetch https://.*input\.txt .*tinyshakespeare\.txt by hand.*tales-en"):
        corpora.fetch_corpus("tinyshakespeare", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- what is no text ---------------------------------------------------------------------------------------------

BAD_FILES = [
    ("t.txt", b"", r"t\.txt is empty"),
    ("t.txt", "h\xe9llo".encode("latin-1"), r"t\.txt is not UTF-8: byte 1 \(counted from 0\) is 0xe9.*--encoding"),
    ("t.txt", b"a" * 600_000 + b"\xff", "byte 600000 .* is 0xff"),
    ("t.txt", codecs.BOM_UTF8 + b"ab\xff", "byte 5 "),
    ("t.txt", "字".encode()[:2], "byte 0 .* is 0xe5"),
    ("t.txt", b"a" * (documents.BLOCK_BYTES - 1) + "字".encode()[:2] + b"b", f"byte {documents.BLOCK_BYTES - 1} "),
    ("t.txt", b"ab\0cd", "not a text file: it holds a NUL character at byte 2"),
    ("t.txt", "héllo".encode("utf-16"), "UTF-16, not UTF-8; add --encoding utf-16"),
    ("t.txt", "héllo".encode("utf-32"), "UTF-32, not UTF-8; add --encoding utf-32"),
    ("t.txt", b"\xed\xa0\x80", "byte 0 "),
    ("t.gz", gzip.compress(b"text" * 1000, mtime=0)[:30], r"t\.gz is a damaged gzip file"),
    ("t.gz", gzip.compress(b"text", mtime=0)[:-8] + b"\1\2\3\4\5\6\7\x08", r"t\.gz is a damaged gzip file"),
    ("t.jsonl", b'{"text": "a"}\n{"text": ', r"t\.jsonl, line 2 is not JSON"),
    ("t.jsonl", b"[" * 100_000, r"line 1 is not JSON"),
    ("t.jsonl", b'["text"]', "line 1 has no text in the field 'text'"),
    ("t.jsonl", b'{"story": "a", "id": 3}', r"field 'text' \(it has 'story', 'id'\); name the field with --text-field"),
    ("t.jsonl", b'{"text": 5}', "line 1: the field 'text' holds no text, but 5"),
    ("t.jsonl", b'{"text": "a"}\n{"text": null}', "line 2: the field 'text' holds no text, but null"),
    ("t.jsonl", b'{"text": "ab\\ud800"}', r"line 1: .*lone surrogate \(U\+D800\) at position 2"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_that_is_no_text_gets_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content, name)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_gets_one_clear_line(tmp_path: Path) -> None:
    for spec, message in [
        (str(tmp_path / "missing.txt"), "does not exist; give a file, folder"),
        ("tales-eng", r"does not exist \(did you mean tales-en\?\)"),
        (str(tmp_path), "holds no text file"),
        ("nul\0byte", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(spec)


def test_a_text_that_is_missing_is_called_as_the_user_called_it(tmp_path: Path) -> None:
    for flag, expected in (("", ""), ("--undesired", "--undesired ")):
        with pytest.raises(UserError, match=f"^{expected}{tmp_path}/missing.txt does not exist"):
            open_source(f"{tmp_path}/missing.txt", flag=flag)


def test_a_pipe_is_named_without_waiting_for_it(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder; for a pipe, give - and use standard input"):
        open_source(str(tmp_path / "pipe"))
    with pytest.raises(UserError, match="holds no text file"):
        open_source(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "t.txt").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        open_source(str(tmp_path / "t.txt"))


@pytest.mark.parametrize("encoding", ["utf-9", "", "hex", "rot13"])
def test_an_unknown_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(UserError, match=f"--encoding '{encoding}' is unknown"):
        open_source(str(tmp_path / "t.txt"), encoding=encoding)
