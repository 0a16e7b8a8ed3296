"""Scores against direct calculation, token by token, and the coloured text."""

import html
import json
import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from command_line import UserError
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.score import score_documents, token_nats
from generation.surprise import html_page, stretches, terminal_map
from model.checkpoint import save_checkpoint
from model.gpt import GPT

BYTES = ByteTokenizer()
CONTEXT = 16


def nats_one_by_one(model: GPT, tokens: list[int], stride: int) -> list[float]:
    """Each token predicted from the window that it is counted in, one forward pass a token."""
    n_targets = len(tokens) - 1
    last = max(0, n_targets - CONTEXT)
    starts = [*range(0, last, stride), last]
    nats = []
    for target in range(1, len(tokens)):
        start = next(start for start in starts if target <= start + CONTEXT)
        with torch.no_grad():
            logits = model(torch.tensor([tokens[start:target]]))[0, -1]
        nats.append(-float(logits.log_softmax(-1)[tokens[target]]))
    return nats


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
@pytest.mark.parametrize("n_tokens", [2, 10, 16, 17, 18, 33, 150])
def test_every_token_is_counted_once_in_the_first_window_that_reaches_it(
    build_model: Callable[..., GPT], n_tokens: int, stride: int
) -> None:
    model = build_model("ours")
    tokens = torch.randint(0, 256, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens)).tolist()
    assert token_nats(model, tokens, stride) == pytest.approx(nats_one_by_one(model, tokens, stride), abs=2e-5)


def test_stride_1_gives_every_token_the_whole_context(build_model: Callable[..., GPT]) -> None:
    model = build_model()
    tokens = list(range(60))
    with torch.no_grad():
        expected = [
            -float(model(torch.tensor([tokens[max(0, i - CONTEXT) : i]]))[0, -1].log_softmax(-1)[tokens[i]])
            for i in range(1, 60)
        ]
    assert token_nats(model, tokens, 1) == pytest.approx(expected, abs=2e-5)


def test_a_uniform_model_scores_exactly_its_vocabulary(build_model: Callable[..., GPT]) -> None:
    model = build_model()
    with torch.no_grad():
        model.token_embedding.weight.zero_()
    score = score_documents(model, BYTES, ["Hä武", "x"])
    assert score.perplexity == pytest.approx(257, rel=1e-5)
    n_tokens = 6 + 1 + 1 + 1  # bytes and one end of text for each document
    assert len(score.nats) == n_tokens
    assert score.bits_per_byte == pytest.approx(n_tokens * math.log2(257) / 7, rel=1e-5)
    assert score.bits_per_character == pytest.approx(n_tokens * math.log2(257) / 4, rel=1e-5)
    assert (score.n_documents, score.n_bytes, score.n_characters) == (2, 7, 4)


def test_a_stride_above_the_context_is_named(build_model: Callable[..., GPT]) -> None:
    with pytest.raises(UserError, match="--stride must be at most the model's context of 16 tokens, but is 17"):
        score_documents(build_model(), BYTES, ["abc"], stride=17)


def test_no_text_is_an_error(build_model: Callable[..., GPT]) -> None:
    with pytest.raises(UserError, match="no text to score"):
        score_documents(build_model(), BYTES, [])


def test_the_coloured_text_is_the_text_and_its_surprise_the_score(build_model: Callable[..., GPT]) -> None:
    documents = ["Hä武 <b>&\n", "x\ny"]
    score = score_documents(build_model(), BYTES, documents)
    parts = list(stretches(score, BYTES))
    assert "".join(part.text or "<end>" for part in parts) == "Hä武 <b>&\n<end>x\ny<end>"
    assert sum(part.nats for part in parts) == pytest.approx(score.total_nats)
    assert sum(part.n_tokens for part in parts) == len(score.nats)
    page = html_page(score, BYTES, "a <name>")
    of_text = page[page.index('<p class="text">') :]
    shown = html.unescape(re.sub("<[^>]*>", "", of_text)).replace("⏎\n", "⏎").strip()
    assert shown == "Hä武 <b>&\n⏎x\ny⏎"
    assert "a &lt;name&gt;" in page
    assert re.search(r"<script|https?:|src=", page) is None
    in_terminal = re.sub("\x1b\\[[0-9;]*m", "", terminal_map(score, BYTES))
    assert in_terminal.startswith("Hä武 <b>&\n⏎\nx\ny⏎\n")


def test_colours_follow_the_surprise(build_model: Callable[..., GPT]) -> None:
    score = score_documents(build_model(), BYTES, ["some words of text"])
    levels = [(part.nats, part.level) for part in stretches(score, BYTES)]
    assert all(level == min(8, int(nats / math.log(2) / 1.5)) for nats, level in levels)
    assert len({level for _, level in levels}) > 2


def test_the_command_prints_the_numbers_and_writes_the_page(
    build_model: Callable[..., GPT],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_model()
    path, text = tmp_path / "best.pt", tmp_path / "text.txt"
    text.write_text("oné\n<|endoftext|>\ntwo", encoding="latin-1")
    save_checkpoint(
        path, model_config=model.config, state_dict=model.state_dict(), tokenizer=BYTES.state(), provenance={}
    )
    words = ["score", str(text), "--encoding", "latin-1", "--json", "--html", f"{text}.html"]
    monkeypatch.setattr(sys, "argv", [*words, "--checkpoint", str(path)])
    monkeypatch.delitem(sys.modules, "generation.score")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("generation.score", run_name="__main__")
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bits_per_byte"] == pytest.approx(score_documents(model, BYTES, ["oné", "two"]).bits_per_byte)
    assert "oné" in re.sub("<[^>]*>", "", Path(f"{text}.html").read_text(encoding="utf-8"))
