"""A prompt to write texts together with the model: `python generate.py --interactive`."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from command_line import ArgumentParser, UserError, add_options, closest, flag_name, given_options
from generation.config import SamplingConfig
from generation.decoding import Piece
from generation.inspection import Colours, format_trace
from generation.interruption import Interruption
from generation.logits_processors.base import LogitsProcessor
from generation.output import notify, write_text
from generation.stopping import Limit, StoppingCriterion
from generation.text_generator import TextGenerator

HELP = """\
Write something and the model goes on; it sees the whole text so far. A line that ends in \\ goes on in the next one.
  /retry              another continuation of the last text
  /clear              begin a new text
  /text               show the whole text so far
  /explain            show how each token of the last continuation was chosen
  /settings           show the settings
  /temperature 0.8    change a setting (any of /settings); /temperature default resets it
  /ban-text " that"   values with spaces at their ends in quotes; several at once: /stop "." "!"
  /help, /quit        Ctrl-C stops a continuation, Ctrl-D quits"""

FIXED = ("num_samples", "batch_size")
"""Sampling options that a conversation, one text, has no use for."""
COMMANDS = ("retry", "clear", "text", "explain", "settings", "help", "quit")
N_ALTERNATIVES = 5

Write = Callable[[str], object]


class Session:
    """One conversation: the text so far, the settings, and what the user's lines do to them."""

    def __init__(
        self,
        generator: TextGenerator,
        sampling: SamplingConfig,
        *,
        processors: Sequence[LogitsProcessor] = (),
        criteria: Sequence[StoppingCriterion] = (),
        write: Write = write_text,
    ) -> None:
        self.generator = generator
        self.sampling = dataclasses.replace(sampling, num_samples=1)
        self.text = ""
        self._processors = processors
        self._criteria = criteria
        self._write = write
        self._before_reply = ""
        self._n_retries = 0
        self._pieces: list[Piece] = []
        self._settings = ArgumentParser(prog="/help", add_help=False)
        add_options(self._settings, SamplingConfig, "settings", skip=FIXED)

    def handle(self, line: str) -> bool:
        """Do what a line asks for; returns whether the session goes on. Raises UserError for a wrong command."""
        if line.startswith("/"):
            return self._command(*line[1:].partition(" ")[::2])
        self.go_on_from(line)
        return True

    def go_on_from(self, text: str) -> None:
        """Append a text of the user and stream a continuation."""
        # Earlier turns stay in the prompt, each on lines of its own.
        self._reply(f"{self.text}\n{text}" if self.text else text, n_retries=0)

    def _command(self, name: str, value: str) -> bool:
        if name == "quit":
            return False
        if name == "retry":
            self._reply(self._before_reply, self._n_retries + 1)
        elif name == "clear":
            self.text = self._before_reply = ""
            self._n_retries, self._pieces = 0, []
        elif name == "text":
            self._write(self.text + "\n")
        elif name == "explain":
            self._write(self._explanation() + "\n")
        elif name == "settings":
            self._write(self._describe_settings() + "\n")
        elif name == "help":
            self._write(HELP + "\n")
        else:
            self._set(name, value.strip())
        return True

    def _reply(self, text: str, n_retries: int) -> None:
        """Stream a continuation of all of `text`; Ctrl-C ends it and keeps what there is.

        When something is refused (UserError), all is as it was before.
        """
        before = (self.text, self._before_reply, self._n_retries, self._pieces)
        self.text = self._before_reply = text
        self._n_retries, self._pieces = n_retries, []
        # A retry draws the same step with other random numbers: those of the next seed.
        sampling = dataclasses.replace(self.sampling, seed=(self.sampling.seed + n_retries) % 2**63)
        try:
            with Interruption() as interruption:
                for piece in self._stream(sampling, interruption):
                    self._pieces.append(piece)
                    self._write(piece.text)
                    self.text += piece.text
        except KeyboardInterrupt:
            self._write(" (stopped)")
        except UserError:
            self.text, self._before_reply, self._n_retries, self._pieces = before
            raise
        self._write("\n")

    def _stream(self, sampling: SamplingConfig, limit: Limit) -> Iterable[Piece]:
        return self.generator.stream(
            self._before_reply,
            sampling,
            processors=self._processors,
            criteria=self._criteria,
            limits=[limit],
            n_alternatives=N_ALTERNATIVES,
            explain=True,
        )

    def _explanation(self) -> str:
        if not self._pieces:
            return "there is no continuation yet"
        colours = Colours(sys.stdout.isatty())
        order = str(self.generator.build_chain(self.sampling, self._processors))
        traces = [
            format_trace(piece, step, self.generator.tokenizer, colours)
            for step, piece in enumerate(self._pieces, start=1)
            if piece.trace is not None
        ]
        return "\n".join([f"order of processors: {order}", *traces])

    def _set(self, name: str, value: str) -> None:
        field_name = name.replace("-", "_")
        settable = [field for field in dataclasses.fields(SamplingConfig) if field.name not in FIXED]
        fields: dict[str, Any] = {field.name: field.default for field in settable}
        if field_name not in fields:
            known = [*COMMANDS, *(flag_name(field)[2:] for field in fields)]
            raise UserError(f"unknown command /{name}{closest(name, known)}; /help lists them")
        if not value:
            self._write(f"{name} {getattr(self.sampling, field_name)}\n")
        elif value == "default":
            self.sampling = dataclasses.replace(self.sampling, **{field_name: fields[field_name]})
        else:
            self.sampling = dataclasses.replace(self.sampling, **self._parse(name, value))

    def _parse(self, name: str, value: str) -> dict[str, Any]:
        """The new value of a setting, with the checks that its flag has."""
        is_switch = isinstance(getattr(self.sampling, name.replace("-", "_")), bool)
        if is_switch and value not in ("on", "off"):
            raise UserError(f"/{name} must be on or off, but is {value!r}")
        if is_switch:
            words = [f"--{name}" if value == "on" else f"--no-{name}"]
        else:
            words = [f"--{name}={one}" for one in _values(value)]
        return given_options(self._settings.parse(words), SamplingConfig)

    def _describe_settings(self) -> str:
        names = [field.name for field in dataclasses.fields(SamplingConfig) if field.name not in FIXED]
        values = {name: getattr(self.sampling, name) for name in names}
        defaults = SamplingConfig()
        lines = [
            f"{flag_name(name)[2:]:20} {value}{'' if value == getattr(defaults, name) else '  (changed)'}"
            for name, value in values.items()
        ]
        return "\n".join(lines)


def _values(text: str) -> list[str]:
    """One value as it stands, or in quotes as in a shell, several too."""
    if not text.startswith(('"', "'")):
        return [text]
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text} does not end with the quote that it begins with") from error


def run_session(session: Session, read_line: Callable[[str], str] = input, prompts: Sequence[str] = ()) -> None:
    """Go on from the prompts, then read lines until /quit or Ctrl-D.

    A mistake is told in one line and costs nothing.
    """
    _enable_history()
    notify("/help lists the commands, Ctrl-D quits")
    for prompt in prompts:
        write_text(prompt)
        session.go_on_from(prompt)
    while True:
        try:
            line = _read(read_line)
            if line.strip() and not session.handle(line):
                return
        except UserError as error:
            notify(str(error))
        except UnicodeDecodeError as error:
            notify(f"what came in is no {error.encoding} and was left out")
        except KeyboardInterrupt:
            write_text("\n")
            notify("Ctrl-D or /quit leaves")
        except EOFError:
            write_text("\n")
            return


def _read(read_line: Callable[[str], str]) -> str:
    """One entry of the user: a line, and those after it as long as a line ends in a backslash."""
    lines = [read_line("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line("… "))
    return "\n".join(lines)


def _enable_history() -> None:
    """Arrow keys bring earlier lines back, where Python has readline (not on Windows, whose console does so itself)."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)
