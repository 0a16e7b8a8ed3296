"""Tokenizer files in and out: the ids of transformers, tokenizers, sentencepiece and tiktoken on awkward texts."""

import json
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from command_line import UserError
from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.byte_pair_merges import merges_equal_ranks, merges_from_ranks
from data.tokenizers.choices import TIKTOKEN_NAMES
from data.tokenizers.huggingface import ONIGURUMA_PATTERNS, HuggingFaceTokenizer
from data.tokenizers.huggingface_files import import_tokenizer
from data.tokenizers.registry import build_tokenizer, tokenizer_from_state
from data.tokenizers.tiktoken_bpe import BytePairTokenizer, load_tiktoken
from data.tokenizers.tokenizer_json import export_tokenizer, tokenizer_spec

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT.parent / "shared" / "tiktoken_cache"
needs_cache = pytest.mark.skipif(not CACHE.is_dir(), reason="tiktoken's files (../shared/tiktoken_cache) are not here")
TALES = "".join(
    (PROJECT / f"data/tales/{name}.txt").read_text(encoding="utf-8")[:30_000] for name in ("en/bright", "zh/gloomy")
)

CODE = (
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # ok?",
    "for (int i = 0; i < 1000; ++i) { a[i] += b[i] * 3.14e-2f; }",
    "\tSELECT * FROM t WHERE id != 42 AND name LIKE '%_x';",
    '<div class="a-b">&nbsp;</div>\r\n',
    "https://example.org/a/b?c=d&e=f#g",
)
EMOJI = ("🙂", "👩‍👩‍👧‍👦", "🇨🇭", "❤️", "👍🏽", "🧑‍🚀 to the 🌕!")
OTHER = (
    "Größe, ça, naïve",
    "Привет, мир",
    "こんにちは",
    "안녕",
    "١٢٣ ½ Ⅷ",
    "e\u0301 ﬁ Ｆ",
    "  two  spaces ",
    "DON'T they'LL I'm",
    "3.14159 12345678",
)


@cache
def mixed_lines() -> tuple[str, ...]:
    """1,000 lines of English, Chinese, emoji and code, in every order and with awkward white space."""
    draw = random.Random(6)
    tales = [line for line in TALES.splitlines() if line and line != END_OF_TEXT]
    lines = []
    for _ in range(1000):
        parts = [draw.choice(draw.choice([tales, CODE, EMOJI, OTHER])) for _ in range(draw.randint(1, 4))]
        lines.append(draw.choice(["", " ", "   ", "\t", "\n\n"]).join(parts))
    return tuple(lines)


@cache
def tokenizer(choice: str) -> Tokenizer:
    if choice in TIKTOKEN_NAMES:
        return load_tiktoken(choice)
    return build_tokenizer(choice, lambda: iter([TALES, *mixed_lines()]), len(TALES))


@pytest.fixture(autouse=True)
def tiktoken_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    monkeypatch.setitem(os.environ, "TOKENIZERS_PARALLELISM", "false")


every_choice = [
    *("char", "byte", "bpe:257", "bpe:900"),
    # The larger two take seconds to turn into merges.
    *(pytest.param(name, marks=[needs_cache, pytest.mark.slow][: 1 + (name != "gpt2")]) for name in TIKTOKEN_NAMES),
]


# ---- out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", every_choice)
def test_exported_tokenizer_gives_the_same_ids_in_transformers(choice: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = tokenizer(choice)
    export_tokenizer(ours, tmp_path, context_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for line in mixed_lines():
        ids = theirs.encode(line)
        assert ids == ours.encode(line), line
    assert theirs.decode(ids) == line
    assert len(theirs) == ours.vocab_size or choice in TIKTOKEN_NAMES
    assert theirs.eos_token_id == ours.end_of_text
    assert theirs.encode(END_OF_TEXT) == [ours.end_of_text]
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("choice", ["byte", "bpe:257", "bpe:900", pytest.param("gpt2", marks=needs_cache)])
def test_exported_byte_pairs_come_back_as_the_same_encoding(choice: str, tmp_path: Path) -> None:
    ours = tokenizer(choice)
    export_tokenizer(ours, tmp_path, context_length=64)
    back = import_tokenizer(tmp_path, ours.vocab_size, "back")
    assert isinstance(back, BytePairTokenizer)
    assert back.tokens == [ours.token_bytes(token_id) for token_id in range(ours.vocab_size)]
    assert back.end_of_text == ours.end_of_text
    assert [back.encode(line) for line in mixed_lines()] == [ours.encode(line) for line in mixed_lines()]


def test_exported_characters_come_back(tmp_path: Path) -> None:
    ours = tokenizer("char")
    export_tokenizer(ours, tmp_path, context_length=64)
    back = import_tokenizer(tmp_path, ours.vocab_size, "back")
    for line in mixed_lines():
        assert back.encode(line) == ours.encode(line)
        assert back.decode(ours.encode(line)) == line
    with pytest.raises(UserError, match=r"cannot represent the character 'ቀ' \(U\+1240\) at position 2"):
        back.encode("a ቀ b")


# ---- in: GPT-2 ---------------------------------------------------------------------------------------------------


# GPT-2's spelling of bytes, by the rule of its encoder.py: 188 bytes as themselves, the others from U+0100 on.
KEPT = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [value for value in range(256) if value not in KEPT]
SPELLING = {value: chr(value) for value in KEPT} | {value: chr(256 + i) for i, value in enumerate(OTHERS)}


def printable(token: bytes) -> str:
    return "".join(SPELLING[value] for value in token)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt as OpenAI published them, rebuilt from tiktoken's ranks."""
    if not CACHE.is_dir():
        pytest.skip("tiktoken's files (../shared/tiktoken_cache) are not here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
        tokens = load_tiktoken("gpt2").tokens
    folder = tmp_path_factory.mktemp("gpt2")
    vocab = {printable(token): rank for rank, token in enumerate(tokens) if token} | {END_OF_TEXT: 50256}
    merges = "\n".join(f"{printable(left)} {printable(right)}" for left, right in merges_from_ranks(tokens))
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 50256}))
    return folder


def test_gpt2_files_become_exactly_tiktokens_gpt2(gpt2_folder: Path) -> None:
    imported, reference = import_tokenizer(gpt2_folder, 50257, "gpt2"), load_tiktoken("gpt2")
    assert isinstance(imported, BytePairTokenizer)
    assert imported.tokens == reference.tokens
    assert imported.state() == reference.state()


def test_gpt2_files_give_transformers_ids(gpt2_folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.GPT2Tokenizer.from_pretrained(gpt2_folder)
    imported = import_tokenizer(gpt2_folder, 50257, "gpt2")
    for line in mixed_lines():
        assert imported.encode(line) == theirs.encode(line), line


def test_padded_vocabulary_gets_ids_without_text(gpt2_folder: Path) -> None:
    imported = import_tokenizer(gpt2_folder, 50304, "gpt2")
    assert (imported.vocab_size, imported.end_of_text) == (50304, 50256)
    assert [imported.token_bytes(token_id) for token_id in range(50256, 50304)] == [b""] * 48
    assert tokenizer_from_state(imported.state()).encode("a b") == load_tiktoken("gpt2").encode("a b")


def test_tokenizer_larger_than_its_model_is_refused(gpt2_folder: Path) -> None:
    with pytest.raises(UserError, match=r"has the id \d+, but the model's vocabulary ends at 49999"):
        import_tokenizer(gpt2_folder, 50000, "gpt2")


# ---- when are merges and ranks the same? -------------------------------------------------------------------------


def random_vocabulary(draw: random.Random) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """256 bytes and some merges over two letters, drawn without regard to whether ranks agree with them."""
    tokens, merges = [bytes([value]) for value in range(256)], []
    for _ in range(draw.randint(1, 7)):
        known = [token for token in tokens if set(token) <= set(b"ab")]
        left, right = draw.choice(known), draw.choice(known)
        if left + right not in tokens and len(left + right) < 6:
            tokens.append(left + right)
            merges.append((left, right))
    return tokens, merges


def ids_by_merges(tokens: list[bytes], merges: list[tuple[bytes, bytes]], ignore_merges: bool) -> Any:
    vocab = {printable(token): rank for rank, token in enumerate(tokens)}
    pairs = [(printable(left), printable(right)) for left, right in merges]
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocab, pairs, ignore_merges=ignore_merges))


@pytest.mark.parametrize("ignore_merges", [True, False])
def test_merges_equal_ranks_exactly_when_all_texts_get_the_same_ids(ignore_merges: bool) -> None:
    draw, n_equal = random.Random(0), 0
    texts = [f"{number:b}".translate({48: "a", 49: "b"})[1:] for number in range(2, 2**9)]
    for attempt in range(120):
        tokens, merges = random_vocabulary(draw)
        if attempt % 2:
            merges = merges_from_ranks(tokens)
        by_merges = ids_by_merges(tokens, merges, ignore_merges)
        by_ranks = BytePairTokenizer("bpe", "test", "gpt2", [*tokens, b""], len(tokens))
        agree = all(by_merges.encode(text).ids == by_ranks.encode(text) for text in texts)
        assert merges_equal_ranks(tokens, merges, ignore_merges) == agree, merges
        n_equal += agree
    assert 20 < n_equal < 115


def test_merges_out_of_ranks_give_tiktokens_ids() -> None:
    draw = random.Random(1)
    for _ in range(50):
        tokens, _ = random_vocabulary(draw)
        by_merges = ids_by_merges(tokens, merges_from_ranks(tokens), ignore_merges=True)
        by_ranks = BytePairTokenizer("bpe", "test", "gpt2", [*tokens, b""], len(tokens))
        for text in ("ab" * 9, "aabbab", "bbbbbbb", "abbaabbaabab"):
            assert by_merges.encode(text).ids == by_ranks.encode(text)


def test_merges_that_ranks_cannot_express_stay_with_the_library(tmp_path: Path) -> None:
    spec = tokenizer_spec(tokenizer("bpe:900"))
    merges = spec["model"]["merges"]
    merges[0], merges[200] = merges[200], merges[0]
    spec["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    imported = import_tokenizer(tmp_path, 1000, "odd")
    assert isinstance(imported, HuggingFaceTokenizer)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    differs = False
    for line in mixed_lines():
        assert imported.encode(line) == reference.encode(line).ids
        assert imported.decode(imported.encode(line)) == line
        differs |= imported.encode(line) != tokenizer("bpe:900").encode(line)
    assert differs


# ---- in: Llama ---------------------------------------------------------------------------------------------------


def llama3_spec() -> dict[str, Any]:
    """A byte-level vocabulary whose texts begin with a special token, as Llama-3's do."""
    spec = tokenizer_spec(tokenizer("bpe:900"))
    n_tokens = tokenizer("bpe:900").vocab_size
    begin = {**spec["added_tokens"][0], "content": "<|begin|>", "id": n_tokens}
    spec["added_tokens"].append(begin)
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [n_tokens], "tokens": ["<|begin|>"]}},
    }
    return spec


def metaspace_spec(prefix: str) -> dict[str, Any]:
    """A vocabulary with spaces as ▁ and single bytes as <0xNN>, as Llama-2's; `prefix` says how a text begins."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [tokenizers.normalizers.Replace(" ", "▁")]
    if prefix == "prepend":
        steps.insert(0, tokenizers.normalizers.Prepend("▁"))
        trained.normalizer = tokenizers.normalizers.Sequence(steps)
    else:
        trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    trained.train_from_iterator((line for line in TALES.splitlines()), trainer)
    trained.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            *([] if prefix == "never" else [tokenizers.decoders.Strip(" ", 1, 0)]),
        ]
    )
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    spec: dict[str, Any] = json.loads(trained.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # the bytes are ordinary tokens
    return spec


SPECS: dict[str, Callable[[], dict[str, Any]]] = {
    "llama3": llama3_spec,
    "prepend": lambda: metaspace_spec("prepend"),
    "always": lambda: metaspace_spec("always"),
    "first": lambda: metaspace_spec("first"),
    "never": lambda: metaspace_spec("never"),
}


@pytest.mark.parametrize("kind", SPECS)
def test_llama_files_give_the_librarys_ids_behind_the_begin_of_text(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(SPECS[kind]()), encoding="utf-8")
    imported = import_tokenizer(tmp_path, 2048, "llama")
    again = tokenizer_from_state(json.loads(json.dumps(imported.state())))
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert imported.begin_of_text == (tokenizer("bpe:900").vocab_size if kind == "llama3" else 1)
    for line in mixed_lines():
        ids = imported.encode(line)
        assert [imported.begin_of_text, *ids] == reference.encode(line).ids
        assert again.encode(line) == ids
        # Where theirs puts no space before a text that has one, theirs loses it too.
        loses_space = kind in ("always", "first") and line.startswith(" ")
        assert imported.decode(ids) == line.removeprefix(" " if loses_space else "")
        assert b"".join(map(imported.token_bytes, ids)).decode() in (line, f" {line}")


def test_special_tokens_in_a_text_are_ordinary_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(metaspace_spec("prepend")), encoding="utf-8")
    imported = import_tokenizer(tmp_path, 2048, "llama")
    ids = imported.encode("a</s>b<s>")
    assert not {0, 1, 2} & set(ids)
    assert imported.decode(ids) == "a</s>b<s>"
    assert [imported.token_bytes(special) for special in (0, 1, 2)] == [b"", b"", b""]


@pytest.fixture
def sentencepiece_model(tmp_path: Path) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text(TALES, encoding="utf-8")

    def train(**settings: Any) -> Any:
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"),
            model_prefix=str(tmp_path / "tokenizer"),
            **{"vocab_size": 2500, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2, **settings},
        )
        return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))

    return train


LLAMA_SETTINGS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}


def test_sentencepiece_model_gives_sentencepieces_ids(sentencepiece_model: Any, tmp_path: Path) -> None:
    reference = sentencepiece_model(**LLAMA_SETTINGS)
    imported = import_tokenizer(tmp_path, reference.GetPieceSize(), "llama")
    assert (imported.begin_of_text, imported.end_of_text) == (reference.bos_id(), reference.eos_id())
    for line in mixed_lines():
        ids = imported.encode(line)
        assert ids == reference.EncodeAsIds(line)
        assert imported.decode(ids) == line


@pytest.mark.parametrize("change", [{"normalization_rule_name": "nmt_nfkc"}, {"model_type": "unigram"}])
def test_sentencepiece_models_of_other_kinds_are_refused(
    change: dict[str, str], sentencepiece_model: Any, tmp_path: Path
) -> None:
    sentencepiece_model(**{**LLAMA_SETTINGS, **change})
    with pytest.raises(UserError, match=r"tokenizer\.model is not a plain SentencePiece BPE"):
        import_tokenizer(tmp_path, 3000, "llama")


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer: there is no tokenizer\.json or vocab\.json"):
        import_tokenizer(tmp_path, 10, "none")


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"model": {}}', '{"model": {"vocab": 3}}', '{"model": {"vocab": {}}, "added_tokens": ["</s>"]}'],
)
def test_damaged_tokenizer_file_is_named(damage: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(damage)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        import_tokenizer(tmp_path, 10, "damaged")


def test_unknown_end_of_text_is_said(tmp_path: Path) -> None:
    spec = metaspace_spec("prepend")
    spec["added_tokens"] = []
    spec["model"]["vocab"] = {token.replace("</s>", "<end>"): i for token, i in spec["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(UserError, match="which token ends a text"):
        import_tokenizer(tmp_path, 2000, "endless")


def test_expressions_of_strangers_are_refused(tmp_path: Path) -> None:
    """`(a+)+$` takes exponential time on `aaaa…b`; a checkpoint could carry it."""
    spec = llama3_spec()
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(UserError, match=r"splits by an expression that is not known here: '\(a\+\)\+\$'"):
        import_tokenizer(tmp_path, 2000, "slow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is not"),
        ({"tokenizer_json": None}, "description is not a text"),
        ({"tokenizer_json": "{"}, "description is not JSON"),
        ({"tokenizer_json": "[]"}, "description is not a table"),
        ({"tokenizer_json": '{"model": {"type": "BPE"}}'}, "description is damaged"),
        ({"vocab_size": 10}, "vocabulary ends at 9"),
        ({"vocab_size": 10**12}, "vocab_size is not a number"),
        ({"end_of_text": True}, "end_of_text or begin_of_text"),
        ({"end_of_text": 300}, "id 300 is not that of a special token"),
        ({"begin_of_text": 10**6}, "id 1000000 is not that of a special token"),
    ],
)
def test_damaged_states_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama3_spec()), encoding="utf-8")
    state = import_tokenizer(tmp_path, 2048, "llama").state()
    with pytest.raises(UserError, match=message):
        tokenizer_from_state({**state, **change})


def test_every_known_expression_means_the_same_in_both_libraries() -> None:
    """tiktoken and Oniguruma split the mixed lines alike, so that exported ids cannot differ by a border."""
    import tiktoken

    from data.tokenizers.tiktoken_bpe import PATTERNS

    ranks = {bytes([value]): value for value in range(256)}
    for name, pattern in PATTERNS.items():
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(ONIGURUMA_PATTERNS[name]), behavior="isolated")
        encoding = tiktoken.Encoding(name="split", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        joined = "\n".join(mixed_lines())
        words = [word for word, _ in split.pre_tokenize_str(joined)]
        assert "".join(words) == joined
        borders = [len(word.encode()) for word in words]
        # With every split as a token of its own, tiktoken's ids are its splits.
        by_word = {word.encode(): 256 + i for i, word in enumerate(dict.fromkeys(words)) if len(word.encode()) > 1}
        encoding = tiktoken.Encoding(name="split", pat_str=pattern, mergeable_ranks=ranks | by_word, special_tokens={})
        tokens = encoding.decode_tokens_bytes(encoding.encode_ordinary(joined))
        assert [len(token) for token in tokens] == borders, name
