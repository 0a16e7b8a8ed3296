"""Token shards for tests."""

from collections.abc import Iterable
from pathlib import Path

from data.shards import SHARD_TOKENS, ShardWriter, TokenArray, TokenShards


def write_shards(
    folder: Path,
    name: str,
    arrays: Iterable[TokenArray],
    *,
    vocab_size: int,
    tokenizer_hash: str = "",
    corpus_hash: str = "",
    shard_tokens: int = SHARD_TOKENS,
) -> TokenShards:
    """Write token ids as the sequence `name` in a folder and open it; raises DiskError."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(
        folder, name, vocab_size, shard_tokens, tokenizer_hash=tokenizer_hash, corpus_hash=corpus_hash
    ) as writer:  # fmt: skip
        for token_ids in arrays:
            writer.append(token_ids)
    return TokenShards.open(folder, name)
