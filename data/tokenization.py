"""Turn pieces of documents into token ids on all cores, in order and in constant memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.documents import Piece
from data.shards import TokenArray
from data.split import utf8_length
from data.tokenizers.base import Tokenizer

JOB_CHARACTERS = 1 << 18


Job = list[tuple[Piece, bool]]
"""Consecutive pieces, each with whether it belongs to the validation part."""


@dataclass(frozen=True)
class Run:
    """Token ids of consecutive pieces of one part, in their order."""

    token_ids: TokenArray
    text_bytes: int
    validates: bool


def tokenise(parts: Iterable[tuple[Piece, bool]], tokenizer: Tokenizer, workers: int) -> Iterator[Run]:
    """Tokenise pieces in order. Threads are enough: tiktoken works outside Python's lock, and they start at once."""
    jobs = _jobs(parts)
    begun = tokenizer.begin_of_text is not None
    if workers == 1:
        for job, starts in jobs:
            yield from _tokenise_job(job, starts and begun, tokenizer)
        return
    with ThreadPoolExecutor(workers) as executor:
        waiting: deque[Future[list[Run]]] = deque()
        for job, starts in jobs:
            waiting.append(executor.submit(_tokenise_job, job, starts and begun, tokenizer))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _jobs(parts: Iterable[tuple[Piece, bool]]) -> Iterator[tuple[Job, bool]]:
    """Group pieces into jobs of some 256 KB; the flag says whether the job starts with a new document."""
    job: Job = []
    size, starts, next_starts = 0, True, True
    for piece, validates in parts:
        job.append((piece, validates))
        size += len(piece.text)
        next_starts = piece.ends_document
        if size >= JOB_CHARACTERS:
            yield job, starts
            job, size, starts = [], 0, next_starts
    if job:
        yield job, starts


def _tokenise_job(job: Job, starts_document: bool, tokenizer: Tokenizer) -> list[Run]:
    arrays: dict[bool, list[TokenArray]] = {False: [], True: []}
    sizes = {False: 0, True: 0}
    encode: Callable[[str], Any] = getattr(tokenizer, "encode_array", tokenizer.encode)
    end = np.array([tokenizer.end_of_text], dtype=np.uint32)
    for piece, validates in job:
        if starts_document and tokenizer.begin_of_text is not None:
            arrays[validates].append(np.array([tokenizer.begin_of_text], dtype=np.uint32))
        arrays[validates].append(np.asarray(encode(piece.text), dtype=np.uint32))
        if piece.ends_document:
            arrays[validates].append(end)
        starts_document = piece.ends_document
        sizes[validates] += utf8_length(piece.text)
    return [Run(np.concatenate(parts), sizes[validates], validates) for validates, parts in arrays.items() if parts]
