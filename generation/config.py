"""What the user may ask of this room, as frozen dataclasses: how text is drawn, and what `generate.py` shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from command_line import UserError, check_options, flag_name, option

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
"""Where train.py puts its runs."""

PLOT_FORMATS = (".png", ".svg", ".pdf")


def check_plot_name(name: str | None) -> None:
    """Raise UserError for a --plot whose ending names no kind of picture."""
    if name is not None and not name.lower().endswith(PLOT_FORMATS):
        raise UserError(f"--plot must name a file that ends in {' or '.join(PLOT_FORMATS)}, but is {name!r}")


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen and when a text ends; raises UserError for a value out of range."""

    max_new_tokens: int = option(200, "tokens to generate at most", at_least=0, at_most=10**9, group="length")
    min_new_tokens: int = option(0, "no end of text before this many tokens", at_least=0, at_most=10**9)
    stop: tuple[str, ...] = option((), "end the text before this string; may be given several times", metavar="TEXT")
    keep_stop: bool = option(False, "leave the stop string in the text")
    max_sentences: int | None = option(None, "end the text after this many sentences (default: no limit)", at_least=1)
    max_lines: int | None = option(None, "end the text after this many lines (default: no limit)", at_least=1)
    force_end: bool = option(False, "let the last of --max-new-tokens be the end of text")
    length_decay: float = option(
        1.0, "makes the end of text more probable by this factor with every token; 1: never", at_least=1, at_most=100
    )
    length_decay_start: int = option(0, "new tokens before --length-decay begins", at_least=0, at_most=10**9)
    time_limit_seconds: float | None = option(
        None, "end all texts after this time, begin no more (default: no limit)", above=0
    )

    temperature: float = option(
        0.8,
        "divides the logits: below 1 sharper, above 1 flatter, 0: always the most probable token",
        at_least=0,
        group="chance",
    )
    top_k: int | None = option(None, "keep only the k most probable tokens (default: all)", at_least=1)
    top_p: float = option(1.0, "keep the most probable tokens that together reach this probability", above=0, at_most=1)
    min_p: float = option(
        0.0, "keep tokens with at least this share of the best one's probability", at_least=0, at_most=1
    )
    typical_p: float = option(
        1.0, "keep the tokens of typical surprise that reach this probability", above=0, at_most=1
    )
    epsilon_cutoff: float = option(0.0, "drop tokens below this probability", at_least=0, below=1)
    eta_cutoff: float = option(
        0.0, "drop tokens below this probability, and lower ones where the model is uncertain", at_least=0, below=1
    )
    seed: int = option(0, "the same seed draws the same text", at_least=0, at_most=2**63 - 1)
    num_samples: int = option(1, "texts to draw for each prompt", at_least=1, at_most=10**6)
    batch_size: int = option(64, "texts to draw side by side; does not change them", at_least=1, at_most=2**16)

    repetition_penalty: float = option(
        1.0, "above 1: less of what has occurred (divides the logits)", at_least=0.01, at_most=100, group="repetition"
    )
    presence_penalty: float = option(
        0.0, "subtracted from the logits of what has occurred", at_least=-1000, at_most=1000
    )
    frequency_penalty: float = option(0.0, "subtracted for each occurrence", at_least=-1000, at_most=1000)
    penalty_window: int | None = option(None, "newest tokens that penalties count (default: all)", at_least=1)
    penalty_scope: Literal["all", "new"] = option("all", "count prompt and new tokens, or only the new ones")
    no_repeat_ngram: int | None = option(None, "never write the same n tokens twice", at_least=1, at_most=10**6)

    ban_text: tuple[str, ...] = option(
        (), "never write this text, nor capitalised; may be given several times", metavar="TEXT", group="bans"
    )
    ban_first: tuple[Literal["digits", "letters", "uppercase", "lowercase", "punctuation"], ...] = option(
        (), "kind of character that must not come first; may be given several times"
    )
    suppress_tokens: tuple[int, ...] = option(
        (), "never draw the token of this id; may be given several times", at_least=0, metavar="ID"
    )
    valid_utf8: bool = option(
        True, "never draw a token that breaks a character, nor begin one that --max-new-tokens would cut"
    )
    logit_bias: tuple[str, ...] = option(
        (), "add X to the logit of token ID; may be given several times", metavar="ID:X"
    )

    cache: Literal["window", "exact", "rolling"] = option(
        "window",
        "when the context is full: window keeps its newest half, exact recomputes it for every token (slow), rolling "
        "drops the oldest token (rotary positions only)",
        group="machine",
    )

    def __post_init__(self) -> None:
        check_options(self)
        for flag, texts in (("--stop", self.stop), ("--ban-text", self.ban_text)):
            if "" in texts:
                raise UserError(f"{flag} must be a text of at least one character, but is empty; leave it out")
        for entry in self.logit_bias:
            parse_logit_bias(entry)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"--min-new-tokens ({self.min_new_tokens}) must not be above --max-new-tokens ({self.max_new_tokens})"
            )


def parse_logit_bias(entry: str) -> tuple[int, float]:
    """Token id and number of an `ID:X`; raises UserError when it is none."""
    match = re.fullmatch(r"([0-9]{1,9}):([+-]?[0-9]{1,9}(\.[0-9]*)?)", entry, re.ASCII)
    if match is None:
        raise UserError(f"--logit-bias must be a token id and a number such as 42:-1.5, but is {entry!r}")
    return int(match[1]), float(match[2])


@dataclass(frozen=True)
class LoadConfig:
    """Which model to use, and on what."""

    checkpoint: str | None = option(None, "checkpoint file (default: the newest run's best.pt)", metavar="FILE")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", metavar="NAME")
    precision: Literal["auto", "fp32", "bf16", "int8"] = option(
        "auto", "how the weights are stored; auto: fp32 on a CPU; there bf16 and int8 imply --compile"
    )
    compile: bool = option(
        False, "CPU: decode by C++ kernels, several times as fast; compiled at the first start (2 s), then kept"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class GenerateConfig:
    """What `generate.py` is asked to do, besides how to sample."""

    prompt: tuple[str, ...] = option(
        (),
        "text to continue; may be given several times; - reads standard input (default: begin a new text)",
        metavar="TEXT",
        group="prompt",
    )
    processor: tuple[str, ...] = option(
        (),
        "logits processor of your own, PATH.py:Class or PATH.py:Class(name=value, ...); may be given several times",
        metavar="PATH.py:CLASS",
        group="extensions",
    )
    criterion: tuple[str, ...] = option(
        (), "stopping criterion of your own, written like --processor", metavar="PATH.py:CLASS"
    )
    beams: int | None = option(
        None,
        "search a text of high probability with this many beams instead of drawing one",
        at_least=1,
        at_most=1000,
        group="strategy",
    )
    best_of: int | None = option(
        None, "draw this many texts for each one and keep the one that scores best", at_least=1, at_most=10**6
    )
    scorer: str | None = option(
        None,
        "score of --best-of, called with a result and written like --processor (default: mean log-probability)",
        metavar="PATH.py:CLASS",
    )
    info: bool = option(False, "print the checkpoint's card and stop", group="what to show")
    show_next: int | None = option(None, "print the N most probable next tokens and stop", at_least=1, at_most=10**6)
    explain: bool = option(False, "print how each token was chosen, and with --json put it into `steps`")
    alternatives: int = option(
        5, "most probable tokens that --explain and --json list at each step", at_least=0, at_most=10**6
    )
    plot: str | None = option(
        None, "draw the next token's distribution at several temperatures and stop", metavar="FILE.png"
    )
    json: bool = option(False, "print one JSON object a line, one line a sample")
    interactive: bool = option(False, "a prompt to write texts together; /help lists its commands")

    def __post_init__(self) -> None:
        check_options(self)
        if self.prompt.count("-") > 1:
            raise UserError("--prompt - reads all of standard input, so it can be given only once")
        check_plot_name(self.plot)
        if self.plot is not None and len(self.prompt) > 1:
            raise UserError(f"--plot draws what follows one prompt, but {len(self.prompt)} were given; draw one by one")
        self._check_modes()
        self._check_strategy()

    def _check_modes(self) -> None:
        flags = ("info", "show_next", "plot", "interactive")
        modes = [flag_name(name) for name in flags if getattr(self, name) not in (False, None)]
        if len(modes) > 1:
            raise UserError(f"{' and '.join(modes)} are different things to do; give one of them")
        if self.json and {"--plot", "--interactive"} & set(modes):
            raise UserError(f"--json prints objects for programs, {modes[0]} has none; leave one of them out")
        if self.explain and modes:
            more = " (in a session, type /explain)" if self.interactive else ""
            raise UserError(
                f"--explain tells how a text was drawn, {modes[0]} prints none; leave one of them out{more}"
            )

    def _check_strategy(self) -> None:
        if self.beams is not None and self.best_of is not None:
            raise UserError("--beams and --best-of are two ways to choose a text; give one of them")
        strategy = "--beams" if self.beams is not None else "--best-of"
        if (self.beams, self.best_of) != (None, None) and (self.explain or self.interactive):
            other = "--explain" if self.explain else "--interactive"
            raise UserError(
                f"{other} follows one text token by token, but {strategy} chooses among many; give only one"
            )
        if self.scorer is not None and self.best_of is None:
            raise UserError("--scorer says which of several texts is the best; it needs --best-of N")


@dataclass(frozen=True)
class SpeechConfig:
    """How texts are spoken (pyttsx3)."""

    speak: bool = option(False, "speak the text, sentence by sentence while it streams", group="speech")
    speak_to: str | None = option(None, "speak the text into a sound file", metavar="FILE.wav")
    speech_rate: int = option(170, "words per minute", at_least=40, at_most=500)
    speech_volume: float = option(1.0, "loudness, from 0 (silent) to 1 (full)", at_least=0, at_most=1)
    voice: str | None = option(
        None, "name or part of the name of a voice (default: by the text's language)", metavar="NAME"
    )
    list_voices: bool = option(False, "print the voices of this machine and stop")

    def __post_init__(self) -> None:
        check_options(self)
        if self.speak_to is not None and not self.speak_to.lower().endswith(".wav"):
            raise UserError(f"--speak-to must name a file that ends in .wav, but is {self.speak_to!r}")

    def check_beside(self, config: GenerateConfig) -> None:
        """Raise UserError where no plain text is printed that could be spoken."""
        silent = ("json", "show_next", "plot", "interactive")
        others = [flag_name(name) for name in silent if getattr(config, name) not in (False, None)]
        if others and (self.speak or self.speak_to is not None):
            flag = "--speak" if self.speak else "--speak-to"
            raise UserError(f"{flag} speaks the text that is printed, {others[0]} prints none; leave one of them out")
