"""What does preparing a corpus cost? Speed against tiktoken's own batch encoding, and memory at a gigabyte."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import OURS, Comparison, Target, alternate, compare, in_own_process
from benchmarks.report import BenchmarkConfig, Report, run_benchmark

MEGABYTE = 1_000_000
MEMORY_LIMIT = 600.0
VOCABULARY = 8192
TOKENIZER_TEXT_BYTES = 4 * MEGABYTE


def _tokenizer(path: Path) -> object:
    """A BPE trained on the beginning of a text, the same one in every contender."""
    from data.tokenizers.trained_bpe import train_bpe

    with path.open(encoding="utf-8") as file:
        return train_bpe(VOCABULARY, [file.read(TOKENIZER_TEXT_BYTES)])


def prepare(path: Path) -> float:
    """Megabytes per second from text to shards on disk, everything counted: reading, splitting, writing, syncing."""
    from data.prepare import prepare_corpus
    from data.sources import open_source

    tokenizer = _tokenizer(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        started = time.perf_counter()
        prepare_corpus(
            open_source(str(path)), "auto", context_length=256, cache_folder=Path(folder), progress=False,
            tokenizer=tokenizer,  # type: ignore[arg-type]
        )  # fmt: skip
        return path.stat().st_size / MEGABYTE / (time.perf_counter() - started)


def encode_batch(path: Path) -> float:
    """Megabytes per second of tiktoken's `encode_ordinary_batch` on all cores, from texts in memory to lists."""
    import tiktoken

    from data.prepare import available_cores
    from data.tokenizers.tiktoken_bpe import PATTERNS, BytePairTokenizer

    tokenizer = _tokenizer(path)
    assert isinstance(tokenizer, BytePairTokenizer)
    ranks = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i != tokenizer.end_of_text}
    encoding = tiktoken.Encoding("peer", pat_str=PATTERNS["llama3"], mergeable_ranks=ranks, special_tokens={})
    documents = path.read_text(encoding="utf-8").split("\n<|endoftext|>\n")
    started = time.perf_counter()
    encoding.encode_ordinary_batch(documents, num_threads=available_cores())
    return path.stat().st_size / MEGABYTE / (time.perf_counter() - started)


def prepare_memory(path: Path) -> float:
    """Peak anonymous megabytes while a text is prepared."""
    from benchmarks.memory import peak_anonymous_bytes

    return peak_anonymous_bytes(lambda: prepare(path)) / MEGABYTE


def train_tokenizer(path: Path) -> float:
    """Megabytes per second of training a BPE on the whole text."""
    started = time.perf_counter()
    _train_on(path)
    return path.stat().st_size / MEGABYTE / (time.perf_counter() - started)


def train_tokenizer_memory(path: Path) -> float:
    """Peak anonymous megabytes while a BPE is trained on the whole text."""
    from benchmarks.memory import peak_anonymous_bytes

    return peak_anonymous_bytes(lambda: _train_on(path)) / MEGABYTE


def _train_on(path: Path) -> None:
    from data.sources import open_source
    from data.tokenizers.trained_bpe import train_bpe

    train_bpe(VOCABULARY, (piece.text for piece in open_source(str(path)).pieces()))


def answer(config: BenchmarkConfig) -> Report:
    """Speed on 50 MB, memory on 1 GB, BPE training on 10 and 100 MB."""
    from benchmarks.texts import write_text

    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, megabytes in {"speed": 50, "large": 1000, "tenth": 10, "bpe": 100}.items():
            size = max(2, megabytes // 50) if config.quick else megabytes
            paths[name] = Path(folder) / f"{name}.txt"
            write_text(paths[name], size * MEGABYTE)
        raw = "tiktoken encode_ordinary_batch"
        values = alternate(
            {
                OURS: functools.partial(in_own_process, prepare, paths["speed"]),
                raw: functools.partial(in_own_process, encode_batch, paths["speed"]),
            },
            config.turns(3),
        )
        comparisons = compare("preparing 50 MB of text", "MB/s", values, {raw: Target("at least", 0.9)})
        memory = in_own_process(prepare_memory, paths["large"])
        small, large = (in_own_process(train_tokenizer_memory, paths[name]) for name in ("tenth", "bpe"))
        speed = in_own_process(train_tokenizer, paths["bpe"])
    comparisons += [
        Comparison("memory while preparing 1 GB", "MB", "the limit", [memory], [MEMORY_LIMIT], Target("at most", 1)),
        Comparison("memory while training a BPE on 100 MB", "MB", "on 10 MB", [large], [small]),
    ]
    return Report(
        "What does preparing a corpus cost?",
        comparisons,
        [f"training a BPE of {VOCABULARY:,} tokens on 100 MB: {speed:.1f} MB/s", "texts of made-up words"],
        facts={"BPE training, MB/s": speed},
    )


if __name__ == "__main__":
    run_benchmark("prepare_speed", __doc__, answer)
