"""Drawings of how one token is chosen (steps 1 to 7 of docs/decoding.md), from a model's own numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from generation.config import SamplingConfig
from generation.context_window import ContextWindow
from generation.inspection import next_tokens, token_text
from generation.logits_processors.base import LogitsProcessor, processor_name
from generation.plots import readable_labels
from generation.sampling import UniformNumbers, draw
from generation.text_generator import TextGenerator

PROMPT = "The fox said"
REPETITIVE = "The fox said, and the mole said"
RULES: dict[str, Any] = {"repetition_penalty": 1.3, "ban_text": (" that",)}
BLUE, ORANGE, GREY = "C0", "C1", "0.75"


def window(generator: TextGenerator) -> Figure:
    """How much the model sees of a growing text, and how many positions it computes for each token."""
    length = generator.model.config.context_length
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for policy, colour in (("exact", ORANGE), ("window", BLUE)):
        costs = positions_computed(generator, SamplingConfig(cache=policy), 4 * length)  # type: ignore[arg-type]
        label = f"--cache {policy}: {np.mean(costs):.1f} positions computed a token"
        above.plot(positions_seen(costs), color=colour, label=label)
        below.plot(costs, color=colour)
    above.set(ylabel="tokens seen", ylim=(0, 1.15 * length), title=f"a text outgrows a window of {length} tokens")
    below.set(ylabel="positions computed", yscale="log", xlabel="tokens written")
    above.legend(loc="lower right")
    return figure


def positions_computed(generator: TextGenerator, sampling: SamplingConfig, n_tokens: int) -> list[int]:
    """How many positions go through the model for each of so many tokens."""
    calls: list[int] = []
    hook = generator.model.token_embedding.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[1]))
    grown = ContextWindow(generator.model, [generator.encode_prompt("")], [0], sampling)
    grown.start()
    costs = []
    for _ in range(n_tokens):
        calls.clear()
        grown.step(torch.zeros(1, dtype=torch.int64))
        costs.append(sum(calls))
    hook.remove()
    return costs


def positions_seen(costs: Sequence[int]) -> list[int]:
    """How many tokens the model sees at each step: one more than before, or those that were just computed anew."""
    seen = [1]
    for cost in costs:
        seen.append(cost if cost > 1 else seen[-1] + 1)
    return seen[1:]


def last_step(generator: TextGenerator) -> Figure:
    """What the model answers at every position of a prompt; only the last answer is about a token not yet there."""
    token_ids = generator.encode_prompt(PROMPT)
    probabilities = generator.model.eval()(torch.tensor([token_ids])).detach().softmax(dim=-1)[0]  # (T, V)
    figure = Figure(figsize=(3 * len(token_ids), 2.6), layout="constrained")
    for place, axes in enumerate(figure.subplots(1, len(token_ids), sharex=True)):
        top = probabilities[place].topk(6)
        following = token_ids[place + 1] if place + 1 < len(token_ids) else None
        colours = [BLUE if following is None else ORANGE if token == following else GREY for token in top.indices]
        bars(axes, [token_text(generator.tokenizer, token) for token in top.indices.tolist()], top.values, colours)
        title = f"after {generator.tokenizer.decode(token_ids[: place + 1])!r}"
        if following is None:
            axes.set_title(f"{title}\nthe question", color=BLUE, fontsize=9)
        else:
            rank = 1 + int((probabilities[place] > probabilities[place, following]).sum())
            name = token_text(generator.tokenizer, following)
            axes.set_title(f"{title}\nnot needed: {name} (rank {rank}) is there", color="0.4", fontsize=9)
    return figure


def bars(axes: Axes, labels: Sequence[str], shares: Tensor, colours: Sequence[str]) -> None:
    """Horizontal bars of probabilities (n,), the first one on top."""
    families, shown = readable_labels(labels)
    axes.barh(range(len(shown)), shares.tolist(), color=colours)
    axes.set_yticks(range(len(shown)), shown, fontfamily=families)
    axes.invert_yaxis()
    axes.set_xlabel("probability")


def draws(generator: TextGenerator) -> Figure:
    """Ten samples draw one token: random numbers that fall onto a line of length 1."""
    n_samples = 10
    processed = processed_logits(generator, SamplingConfig(top_k=5))
    numbers = UniformNumbers(1, range(n_samples)).at(0)
    drawn = draw(processed.expand(n_samples, -1), numbers).tolist()
    probabilities = processed[0].double().softmax(dim=-1)
    figure = Figure(figsize=(8.5, 2.6), layout="constrained")
    axes = figure.subplots()
    start, best = 0.0, int(probabilities.argmax())
    for number, token in enumerate(probabilities.nonzero()[:, 0].tolist()):
        share = float(probabilities[token])
        axes.barh(0, share, left=start, height=0.5, color=BLUE if token == best else ("0.88", "0.78")[number % 2])
        name = f"{token_text(generator.tokenizer, token)}\n{100 * share:.0f} %, {drawn.count(token)} ×"
        axes.text(start + share / 2, -0.42 - 0.33 * (number % 2), name, ha="center", va="center", fontsize=8)
        start += share
    for sample, number in enumerate(numbers.tolist()):
        tip, text = (number, 0.25), (number, (0.5, 0.72)[sample % 2])
        axes.annotate(f"{sample}", tip, text, ha="center", fontsize=8, arrowprops={"arrowstyle": "->"})
    axes.set(xlim=(0, 1), ylim=(-0.95, 1), yticks=[], xlabel="random number of the samples 0 to 9 (seed 1, step 0)")
    axes.set_title(f"the token after {PROMPT!r}: greedy decoding always takes the blue one", fontsize=10)
    return figure


@torch.inference_mode()
def processed_logits(generator: TextGenerator, sampling: SamplingConfig) -> Tensor:
    """Logits behind PROMPT and all processors, (1, V)."""
    shown = ContextWindow(generator.model.eval(), [generator.encode_prompt(PROMPT)], [0], sampling)
    return generator.build_chain(sampling)(shown.token_ids, shown.start(), shown.prompt_lengths)


def truncation(generator: TextGenerator) -> Figure:
    """Which of the most probable tokens each kind of truncation keeps."""
    n_shown = 64
    kinds = {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.005, "eta_cutoff": 0.02}
    model = processed_logits(generator, SamplingConfig(temperature=1, valid_utf8=False))[0].softmax(dim=-1)
    order = model.argsort(descending=True)
    figure = Figure(figsize=(8.5, 3.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    above.bar(range(1, n_shown + 1), model[order][:n_shown].tolist(), color=BLUE)
    above.set(yscale="log", ylabel="probability", title=f"the {n_shown} most probable tokens after {PROMPT!r}")
    labels = []
    for row, (option, value) in enumerate(kinds.items()):
        settings = SamplingConfig(temperature=1, valid_utf8=False, **{option: value})  # type: ignore[arg-type]
        kept = processed_logits(generator, settings)[0][order] > -torch.inf
        places = 1 + kept[:n_shown].nonzero()[:, 0]
        below.scatter(places.tolist(), [row] * len(places), marker="s", s=14, color=BLUE)
        share = 100 * float(model[order][kept].sum())
        labels.append(f"--{option.replace('_', '-')} {value}: {int(kept.sum())} tokens, {share:.0f} %")
    below.set_yticks(range(len(labels)), labels, fontsize=8)
    below.invert_yaxis()
    below.set(xlabel="rank of the token", xlim=(0, n_shown + 1))
    return figure


def bans(generator: TextGenerator) -> Figure:
    """The next token under the model, and behind a penalty and a ban."""
    settings = SamplingConfig(temperature=1, **RULES)
    tokens = next_tokens(generator, REPETITIVE, 10, settings).tokens
    labels = [token_text(generator.tokenizer, token.token_id) for token in tokens]
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    bars(left, labels, torch.tensor([token.probability for token in tokens]), [GREY] * len(tokens))
    colours = [ORANGE if token.chance < token.probability else BLUE for token in tokens]
    bars(right, labels, torch.tensor([token.chance for token in tokens]), colours)
    left.set_title(f"after {REPETITIVE!r}", fontsize=9)
    right.set_title('with --repetition-penalty 1.3 --ban-text " that"', fontsize=9)
    for place, token in enumerate(tokens):
        if token.chance == 0:
            right.text(0.005, place, "banned", va="center", fontsize=8, color=ORANGE)
    return figure


@torch.inference_mode()
def stages(generator: TextGenerator) -> Figure:
    """The distribution of one token behind every stage, a column each."""
    settings = SamplingConfig(max_new_tokens=2, top_k=5, **RULES)
    shown = ContextWindow(generator.model.eval(), [generator.encode_prompt(REPETITIVE)], [0], settings)
    logits = shown.start()
    columns = [("the model", logits.softmax(dim=-1)[0])]

    def observe(processor: LogitsProcessor, before: Tensor, after: Tensor) -> None:
        columns.append((processor_name(processor), after.softmax(dim=-1)[0]))

    generator.build_chain(settings)(shown.token_ids, logits, shown.prompt_lengths, observe)
    tokens = columns[0][1].topk(10).indices
    table = torch.stack([shares[tokens] for _, shares in columns], dim=1)  # (10, number of columns)
    figure = Figure(figsize=(8.5, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table.sqrt().numpy(), cmap="Blues", aspect="auto", vmax=1.1)
    for row, shares in enumerate(table.tolist()):
        for column, share in enumerate(shares):
            is_best = share > 0 and share == float(columns[column][1].max())
            note = f"{100 * share:.1f} %" if share else "cut"
            weight, colour = "bold" if is_best else "normal", "black" if share else "0.5"
            axes.text(column, row, note, ha="center", va="center", fontsize=8, color=colour, weight=weight)
    heads = [f"{name}\n{int((s > 0).sum())} tokens, {torch.special.entr(s).sum():.2f} nats" for name, s in columns]
    axes.set_xticks(range(len(heads)), heads, fontsize=7)
    families, labels = readable_labels([token_text(generator.tokenizer, token) for token in tokens.tolist()])
    axes.set_yticks(range(len(labels)), labels, fontsize=8, fontfamily=families)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    return figure
