"""An n-gram's row depends on exactly its n tokens, and different n-grams spread over the whole table."""

import math

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_cache import HISTORY, NO_TOKEN
from model.ngram_embedding import NgramEmbedding


def embedding(rows: int = 8192, n_embd: int = 4) -> NgramEmbedding:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=100, n_head=1, n_embd=n_embd, bigram_rows=rows, trigram_rows=rows)
    return NgramEmbedding(config)


def with_history(tokens: Tensor) -> Tensor:
    return torch.nn.functional.pad(tokens, (HISTORY, 0), value=NO_TOKEN)


@pytest.mark.parametrize("order", [2, 3])
def test_a_row_depends_on_exactly_the_last_n_tokens(order: int) -> None:
    table = embedding()
    tokens = torch.randint(0, 100, (1, 12), generator=torch.Generator().manual_seed(0))
    before = table.rows(with_history(tokens), order)
    for position in range(12):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 100
        moved = (table.rows(with_history(changed), order) != before)[0].nonzero().flatten().tolist()
        assert moved == list(range(position, min(position + order, 12)))


@pytest.mark.parametrize("order", [2, 3])
def test_order_of_the_tokens_matters_and_a_missing_one_is_like_no_token(order: int) -> None:
    table = embedding()
    rows = [table.rows(torch.tensor([[0, 5, 7]]), order), table.rows(torch.tensor([[0, 7, 5]]), order)]
    assert rows[0] != rows[1]
    starts = table.rows(with_history(torch.tensor([[5]])), order)
    others = {table.rows(torch.tensor([[NO_TOKEN, other, 5]]), order).item() for other in range(100)}
    assert starts.item() not in others


@pytest.mark.parametrize("rows", [8192, 5003])
def test_pairs_spread_over_the_table_like_chance(rows: int) -> None:
    first, second = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    pairs = torch.stack((torch.zeros_like(first), first, second), dim=-1).flatten(0, 1)  # (10000, 3)
    used = len(set(embedding(rows).rows(pairs, 2).flatten().tolist()))
    # Balls thrown into bins leave a share of e^(−balls / bins) empty.
    assert used / rows == pytest.approx(1 - math.exp(-10_000 / rows), rel=0.1)


def test_result_is_the_sum_of_both_tables() -> None:
    table = embedding()
    for module in table.tables.values():
        torch.nn.init.normal_(module.weight)  # type: ignore[arg-type]
    history = with_history(torch.tensor([[4, 8, 15]]))
    pairs, triples = (table.tables[order].weight[table.rows(history, int(order))] for order in ("2", "3"))  # type: ignore[index]
    torch.testing.assert_close(table(history), pairs + triples)
