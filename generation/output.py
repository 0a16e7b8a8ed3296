"""What `generate.py` reads and prints: prompts, streamed texts, JSON lines, a checkpoint's card."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from command_line import UserError

if TYPE_CHECKING:
    # Only for its name: this file is read before torch is loaded.
    from generation.decoding import Piece

Write = Callable[[str], object]


def notify(notice: str) -> None:
    """Tell the user something on stderr, where it never mixes with the text."""
    print(f"note: {notice}", file=sys.stderr, flush=True)


def write_text(text: str) -> None:
    """Print text on stdout at once, as it is."""
    print(text, end="", flush=True)


def have_one_target() -> bool:
    """Whether stdout and stderr end up in the same terminal, file or pipe, so that one would stand inside the other."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except OSError:  # a stream without a file, as in a notebook
        return True


def read_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts that were typed, `-` replaced by standard input without its last line break; none means empty."""
    return [_read_stdin() if prompt == "-" else prompt for prompt in prompts] or [""]


def _read_stdin() -> str:
    raw = sys.stdin.buffer.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 at byte {error.start}; convert it to UTF-8 first") from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def write_samples(pieces: Iterable["Piece"], prompts: Sequence[str], num_samples: int, write: Write) -> None:
    """Print every prompt with its continuation, sample by sample in their order, while all of them stream.

    The first unfinished sample is shown as it grows; the pieces of later ones wait for their turn. A sample of which
    no piece comes, because Ctrl-C came before or fewer were found, is not shown.
    """
    waiting: dict[int, list[str]] = {}
    ended: set[int] = set()
    shown = 0
    line_ended = True

    def show(sample: int) -> bool:
        """Print what waits of a sample; returns whether that was its end."""
        nonlocal line_ended
        text = "".join(waiting[sample])
        waiting[sample] = []
        if text:
            write(text)
            line_ended = text.endswith("\n")
        if sample not in ended:
            return False
        if not line_ended:
            write("\n")
        line_ended = True
        del waiting[sample]
        return True

    try:
        for piece in pieces:
            waiting.setdefault(piece.sample, [prompts[piece.sample // num_samples]]).append(piece.text)
            if piece.reason is not None:
                ended.add(piece.sample)
            # Samples that ended while an earlier one went on come out together with its end.
            while shown in waiting and show(shown):
                shown += 1
        for sample in sorted(waiting):
            show(sample)
    except KeyboardInterrupt:
        if not line_ended:
            write("\n")
        raise


def json_line(values: Mapping[str, Any]) -> str:
    """One JSON object on one line, in plain ASCII so that every terminal and pipe carries it."""
    return json.dumps(values, ensure_ascii=True, allow_nan=False)


def format_card(card: Mapping[str, Any]) -> str:
    """A checkpoint's card as indented lines `name: value`."""
    return "\n".join(_card_lines(card, ""))


def _card_lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_card_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines
