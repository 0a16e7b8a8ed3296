"""What `generate.py` prints besides plain text: JSON lines, traces, tables of next tokens."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from command_line import config_to_dict
from generation.config import GenerateConfig, SamplingConfig
from generation.decoding import Piece
from generation.inspection import Colours, NextTokens, format_next_tokens, format_trace, token_text
from generation.output import json_line
from generation.text_generator import Result, TextGenerator
from generation.trace import Alternative, StepTrace


def print_json_sample(
    result: Result, generator: TextGenerator, sampling: SamplingConfig, order: str, config: GenerateConfig
) -> None:
    """One sample as one JSON object on stdout: text, why it ended, tokens, and what is needed to draw it again.

    With `--explain`, everything that it prints is there too.
    """
    tokenizer = generator.tokenizer
    asked = {"beams": config.beams, "best_of": config.best_of, "scorer": config.scorer}
    strategy = {name: value for name, value in asked.items() if value is not None}
    values: dict[str, Any] = {
        "prompt": result.prompt,
        "text": result.text,
        "reason": result.reason,
        "sample": result.sample,
        "seed": sampling.seed,
        "token_ids": result.token_ids,
        "tokens": [token_text(tokenizer, token) for token in result.token_ids],
        "log_probabilities": result.log_probabilities,
    }
    if config.alternatives:
        # Not keyed by text: two tokens may have the same one, such as Llama-2's "A" and its byte 0x41.
        values["top_alternatives"] = [
            [
                {"token_id": token, "token": token_text(tokenizer, token), "probability": float(f"{probability:.6g}")}
                for token, probability in of_token
            ]
            for of_token in result.alternatives
        ]
    if config.explain:
        values["steps"] = [_json_step(trace, generator) for trace in result.traces]
    values |= {
        "processors": order,
        "settings": config_to_dict(sampling) | strategy,
        "checkpoint_sha256": generator.checkpoint_sha256,
    }
    print(json_line(values), flush=True)


def print_next_tokens(found: NextTokens, generator: TextGenerator, *, as_json: bool) -> None:
    """The answer of `--show-next` on stdout, as a table or as one JSON object."""
    if not as_json:
        print(format_next_tokens(found, generator.tokenizer), flush=True)
        return
    tokens = [_json_alternative(token, generator) for token in found.tokens]
    print(json_line({"prompt": found.prompt, "entropy": found.entropy, "next_tokens": tokens}), flush=True)


def _json_step(trace: StepTrace, generator: TextGenerator) -> dict[str, Any]:
    alternatives = [_json_alternative(token, generator) for token in trace.alternatives]
    return {**dataclasses.asdict(trace), "alternatives": alternatives}


def _json_alternative(token: Alternative, generator: TextGenerator) -> dict[str, Any]:
    return {**dataclasses.asdict(token), "token": token_text(generator.tokenizer, token.token_id)}


def explained(pieces: Iterable[Piece], generator: TextGenerator, order: str, *, hold: bool) -> Iterator[Piece]:
    """The same pieces, after printing on stderr how each was chosen.

    `hold` is for a place that shows both: the text then stands behind the explanations instead of between them.
    Ctrl-C gives what was held so far before it passes.
    """
    colours = Colours(sys.stderr.isatty())
    print(f"order of processors: {order}", file=sys.stderr)
    held: list[Piece] = []
    steps: Counter[int] = Counter()
    try:
        for piece in pieces:
            if piece.trace is not None:
                steps[piece.sample] += 1
                # In one write with its line break, between which Ctrl-C could come.
                sys.stderr.write(format_trace(piece, steps[piece.sample], generator.tokenizer, colours) + "\n")
            if hold:
                held.append(piece)
            else:
                yield piece
    except KeyboardInterrupt:
        yield from held
        raise
    yield from held
