"""From a source to token shards on disk, once: read, split, build the tokenizer, tokenise in parallel, remember.

    source ── fingerprint ──→ found among the prepared corpora and undamaged? ──→ open it
       └────→ count → split → tokenizer (from the training part) → tokenise → training and validation shards

What was prepared lies in a folder named by the corpus, the tokenizer and the split. The folder gets its name when
everything in it is on disk, so two processes may prepare the same corpus at once and a killed one leaves no half.
Memory stays constant: documents travel in pieces, and at most a few pieces for each worker are in flight.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from command_line import UserError
from data.documents import join_pieces
from data.prepared_folder import discard, publish, read_record, remove_stale, write_record
from data.shards import DamagedShardError, DiskError, ShardWriter, TokenShards
from data.sources import Source
from data.split import CorpusFacts, Split, choose_split, read_facts, utf8_length
from data.tokenization import tokenise
from data.tokenizers.base import Tokenizer
from data.tokenizers.choices import check_tokenizer_choice, resolve_tokenizer_choice
from data.tokenizers.registry import build_tokenizer, tokenizer_from_state, tokenizer_hash

FORMAT_VERSION = 1
TOKENS_FOLDER = Path(__file__).parent / "tokens"
SERIAL_BELOW_BYTES = 1 << 21
"""Corpora smaller than this are tokenised before a second thread would have found its work."""
_MAX_FRACTION = 0.5


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus ready to train on."""

    name: str
    tokenizer: Tokenizer
    training: TokenShards
    validation: TokenShards
    corpus_hash: str
    corpus_bytes: int
    """UTF-8 bytes of all documents, separators not counted; so are the two below."""
    training_bytes: int
    validation_bytes: int
    documents: int
    split: Split
    source: Source
    was_cached: bool

    @property
    def n_training_tokens(self) -> int:
        """Tokens to train on, end-of-text ones included."""
        return len(self.training)

    @property
    def n_validation_tokens(self) -> int:
        """Tokens held out, end-of-text ones included."""
        return len(self.validation)

    def training_documents(self) -> Iterator[str]:
        """Yield the documents of the training part (the last one may be cut short)."""
        return _documents(self.source, self.split, validation=False)

    def validation_documents(self) -> Iterator[str]:
        """Yield the documents of the validation part (the first one may be the end of one)."""
        return _documents(self.source, self.split, validation=True)


def prepare_corpus(
    source: Source,
    tokenizer_choice: str,
    *,
    validation_fraction: float = 0.1,
    context_length: int,
    cache_folder: Path = TOKENS_FOLDER,
    workers: int | None = None,
    progress: bool = True,
    tokenizer: Tokenizer | None = None,
) -> PreparedCorpus:
    """Prepare a source, or open what was prepared before from the same bytes in the same way.

    Every document is followed by end of text. A `tokenizer` given (that of a checkpoint) is used instead of the choice.
    Both parts hold at least one window of `context_length` + 1 tokens: a validation part that is shorter is enlarged,
    up to half of the corpus. Raises UserError when that is not enough, or for what is no text; DiskError.
    """
    if tokenizer is None:
        check_tokenizer_choice(tokenizer_choice)
    preparation = _Preparation(
        source, source.fingerprint(), tokenizer_choice, tokenizer, cache_folder, workers, progress
    )
    window = context_length + 1
    fraction = validation_fraction
    while True:
        corpus = preparation.open_or_build(fraction)
        missing = window - corpus.n_validation_tokens
        if missing <= 0 or fraction >= _MAX_FRACTION:
            break
        enough = 1.1 * fraction * window / max(1, corpus.n_validation_tokens)
        fraction = min(_MAX_FRACTION, max(enough, fraction + 0.01))
    if missing > 0 or corpus.n_training_tokens < window:
        total = corpus.n_training_tokens + corpus.n_validation_tokens
        longest = total // 3
        if 0 < longest < context_length:
            advice = f"lower --context-length (now {context_length}) to {longest} or less, or give more text"
        elif longest >= context_length:
            advice = f"lower --validation-fraction (now {validation_fraction:g})"
        else:
            advice = "give more text"
        raise UserError(
            f"the corpus {source.name} has {total} tokens, of which training and validation need {window} each; "
            f"{advice}"
        )
    return corpus


@dataclass(frozen=True)
class _Preparation:
    source: Source
    corpus_hash: str
    choice: str
    tokenizer: Tokenizer | None
    cache_folder: Path
    workers: int | None
    progress: bool

    def open_or_build(self, fraction: float) -> PreparedCorpus:
        tokenizer = f"hash {tokenizer_hash(self.tokenizer)}" if self.tokenizer else self.choice
        key = json.dumps([FORMAT_VERSION, self.corpus_hash, tokenizer, repr(fraction)])
        folder = self.cache_folder / hashlib.sha256(key.encode("ascii")).hexdigest()[:20]
        if not folder.exists():
            self._build(folder, fraction)
            return self._open(folder, was_cached=False)
        try:
            return self._open(folder, was_cached=True)
        except UserError as error:
            problem = f"{error.path} ({error.problem})" if isinstance(error, DamagedShardError) else str(error)
            print(f"preparing {self.source.name} again, what was prepared is damaged: {problem}", file=sys.stderr)
            discard(folder)
            self._build(folder, fraction)
            return self._open(folder, was_cached=False)

    def _open(self, folder: Path, *, was_cached: bool) -> PreparedCorpus:
        facts = read_record(folder)
        tokenizer = self.tokenizer or tokenizer_from_state(facts["tokenizer"])
        training, validation = TokenShards.open(folder, "training"), TokenShards.open(folder, "validation")
        for shards in (training, validation):
            if was_cached:
                shards.verify(tokenizer.vocab_size)
            if (shards.tokenizer_hash, shards.corpus_hash) != (facts["tokenizer_hash"], self.corpus_hash):
                raise DamagedShardError(shards.paths[0], "made from another corpus or tokenizer")
        return PreparedCorpus(
            name=self.source.name,
            tokenizer=tokenizer,
            training=training,
            validation=validation,
            corpus_hash=self.corpus_hash,
            corpus_bytes=facts["training_bytes"] + facts["validation_bytes"],
            training_bytes=facts["training_bytes"],
            validation_bytes=facts["validation_bytes"],
            documents=facts["documents"],
            split=Split(facts["fraction"], facts["cut"]),
            source=self.source,
            was_cached=was_cached,
        )

    def _build(self, folder: Path, fraction: float) -> None:
        try:
            self.cache_folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.cache_folder)
            temporary = Path(tempfile.mkdtemp(prefix="partial-", dir=self.cache_folder))
        except OSError as error:
            raise DiskError(self.cache_folder, error) from error
        try:
            self._write(temporary, fraction)
            _return_freed_memory()
            publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path, fraction: float) -> None:
        facts = read_facts(self.source.pieces(), fraction)
        if facts.documents == 0:
            raise UserError(f"the corpus {self.source.name} holds no text (only white space); give more text")
        split = choose_split(facts, fraction)
        tokenizer = self.tokenizer or self._build_tokenizer(split, facts)
        identity = tokenizer_hash(tokenizer)
        bytes_of = {False: 0, True: 0}

        def writer(name: str) -> ShardWriter:
            return ShardWriter(
                folder, name, tokenizer.vocab_size, tokenizer_hash=identity, corpus_hash=self.corpus_hash
            )

        with (
            writer("training") as training,
            writer("validation") as validation,
            self._bar("tokenising", facts.bytes) as bar,
        ):
            if split.cut is None:  # the first document too is predicted from an end of text
                validation.append(np.array([tokenizer.end_of_text]))
            for run in tokenise(split.parts(self.source.pieces()), tokenizer, self._n_workers(facts)):
                (validation if run.validates else training).append(run.token_ids)
                bytes_of[run.validates] += run.text_bytes
                bar.update(run.text_bytes)
        record = {
            "tokenizer": tokenizer.state(), "documents": facts.documents, "fraction": fraction, "cut": split.cut,
            "training_bytes": bytes_of[False], "validation_bytes": bytes_of[True],
            "tokenizer_hash": identity,
        }  # fmt: skip
        write_record(folder, record)

    def _build_tokenizer(self, split: Split, facts: CorpusFacts) -> Tokenizer:
        choice = resolve_tokenizer_choice(self.choice, facts.bytes)

        def texts() -> Iterator[str]:
            with self._bar(f"building {choice}", facts.bytes) as bar:
                for piece, validates in split.parts(self.source.pieces()):
                    bar.update(utf8_length(piece.text))
                    # An alphabet is no statistic: without the validation part's own characters it could not be encoded.
                    if not validates or choice == "char":
                        yield piece.text

        return build_tokenizer(choice, texts, facts.bytes)

    def _bar(self, what: str, total: int) -> Any:
        quiet = not self.progress or not sys.stderr.isatty()
        return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=quiet, leave=False, delay=0.5)

    def _n_workers(self, facts: CorpusFacts) -> int:
        if self.workers is None and facts.bytes < SERIAL_BELOW_BYTES:
            return 1
        return self.workers or available_cores()


def _return_freed_memory() -> None:
    """Give what the tokenizer's training counted back to the system: many small pieces, which glibc would keep."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _documents(source: Source, split: Split, *, validation: bool) -> Iterator[str]:
    return join_pieces(piece for piece, validates in split.parts(source.pieces()) if validates == validation)
