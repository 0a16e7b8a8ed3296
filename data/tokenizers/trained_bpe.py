"""Train a byte-level BPE on a corpus: the `tokenizers` package finds the merges, tiktoken encodes with them.

Training needs memory for the distinct words of the corpus only, and encoding with tiktoken is several times faster
than with the package that trained it. Both give the same ids (tests/data/test_trained_bpe.py).
"""

import functools
from collections.abc import Iterable, Iterator

from data.tokenizers.choices import check_tokenizer_choice
from data.tokenizers.chunks import split_text
from data.tokenizers.tiktoken_bpe import MAX_TOKEN_BYTES, PATTERNS, BytePairTokenizer

_FEED_CHARACTERS = 1 << 14
"""Characters given to the trainer at a time: it buffers 256 such texts before it counts their words."""


def train_bpe(vocab_size: int, texts: Iterable[str]) -> BytePairTokenizer:
    """A byte-level BPE of at most `vocab_size` ids: 256 bytes, the most frequent merges, end of text.

    A pair is merged only when it occurs at least twice, so a small corpus gives fewer ids than asked;
    `vocab_size` of the result says how many.
    """
    check_tokenizer_choice(f"bpe:{vocab_size}")
    # Half a second of imports that a checkpoint's tokenizer, already trained, does without.
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS["llama3"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_BYTES,
    )
    trained.train_from_iterator(_bounded(texts), trainer)
    by_id = sorted((token_id, token) for token, token_id in trained.get_vocab().items())
    tokens = [bytes_of_printable(token) for _, token in by_id]
    return BytePairTokenizer("bpe", f"bpe:{vocab_size}", "llama3", [*tokens, b""], end_of_text=len(tokens))


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from split_text(text, _FEED_CHARACTERS)


def byte_of_printable() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte, as the `tokenizers` package writes tokens: character → byte.

    Printable bytes stand for themselves; the 68 others, in order, for the characters from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}


def bytes_of_printable(token: str) -> bytes:
    """The bytes that such characters stand for; raises UnicodeEncodeError at one that stands for none."""
    return token.translate(_latin_1_of_printable()).encode("latin-1")


@functools.cache
def _latin_1_of_printable() -> dict[int, int]:
    """Latin-1 spells every byte as one character; what stands for no byte becomes one that it does not have."""
    return {**dict.fromkeys(range(256), 256), **{ord(character): n for character, n in byte_of_printable().items()}}
