"""The interactive session, driven line by line."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from command_line import UserError
from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from generation.config import SamplingConfig
from generation.decoding import Piece
from generation.interactive import HELP, Session, run_session
from generation.text_generator import TextGenerator
from model.gpt import GPT

SHORT = SamplingConfig(max_new_tokens=8)


class Screen:
    """Collects what a session writes."""

    def __init__(self) -> None:
        self.shown = ""

    def __call__(self, text: str) -> None:
        self.shown += text

    def take(self) -> str:
        shown, self.shown = self.shown, ""
        return shown


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def session(build_model: Callable[..., GPT], screen: Screen) -> Session:
    generator = TextGenerator(build_model("llama", context_length=64), ByteTokenizer())
    return Session(generator, SHORT, write=screen)


def test_earlier_turns_stay_in_the_prompt(session: Session, screen: Screen) -> None:
    session.handle("one")
    first = screen.take()
    assert session.text + "\n" == "one" + first
    session.handle("two")
    expected = session.generator.generate(f"one{first}two", SHORT)[0].text
    assert screen.take() == expected + "\n"
    session.handle("/text")
    assert screen.take() == f"one{first}two{expected}\n"


def test_retry_draws_another_continuation_of_the_same_text(session: Session, screen: Screen) -> None:
    session.handle("one")
    texts = [screen.take()]
    for _ in range(3):
        session.handle("/retry")
        texts.append(screen.take())
    assert len(set(texts)) == 4
    assert session.text + "\n" == "one" + texts[-1]


def test_clear_begins_a_new_text(session: Session, screen: Screen) -> None:
    session.handle("one")
    first = screen.take()
    session.handle("/clear")
    session.handle("one")
    assert screen.take() == first
    session.handle("/retry")
    second = screen.take()
    session.handle("/clear")
    session.handle("/explain")
    assert screen.take() == "there is no continuation yet\n"
    session.handle("one")
    assert screen.take() == first
    session.handle("/retry")
    assert screen.take() == second


def test_settings_are_changed_shown_and_reset(session: Session, screen: Screen) -> None:
    for command in ("/temperature 0.3", "/top-k 5", "/keep-stop on", "/stop ."):
        session.handle(command)
    assert session.sampling == dataclasses.replace(SHORT, temperature=0.3, top_k=5, keep_stop=True, stop=(".",))
    session.handle("/temperature")
    assert screen.take() == "temperature 0.3\n"
    session.handle("/settings")
    assert "temperature          0.3  (changed)" in screen.take()
    for command in ("/temperature default", "/top_k default", "/keep-stop off", "/stop default"):
        session.handle(command)
    assert session.sampling == SHORT


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/temperatur 0.8", r"unknown command /temperatur \(did you mean temperature\?\)"),
        ("/temperature -1", "--temperature must be a finite number at least 0, but is -1"),
        ("/top-k many", "--top-k must be a whole number at least 1, but is 'many'"),
        ("/keep-stop maybe", "/keep-stop must be on or off, but is 'maybe'"),
    ],
)
def test_a_wrong_command_is_named_and_changes_nothing(session: Session, command: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        session.handle(command)
    assert session.sampling == SHORT


def test_values_in_quotes_keep_their_spaces_and_may_be_several(session: Session) -> None:
    for command in ('/ban-text " that"', """/stop "." '"' """):
        session.handle(command)
    assert session.sampling == dataclasses.replace(SHORT, ban_text=(" that",), stop=(".", '"'))
    with pytest.raises(UserError, match="does not end with the quote"):
        session.handle('/stop "')


def test_settings_that_a_single_text_has_no_use_for_are_not_offered(session: Session, screen: Screen) -> None:
    session.handle("/settings")
    shown = screen.take()
    for name in ("num-samples", "batch-size"):
        assert name not in shown
        with pytest.raises(UserError, match=f"unknown command /{name}"):
            session.handle(f"/{name} 2")


def test_a_text_that_is_refused_leaves_the_conversation_as_it_was(build_model: Callable[..., GPT]) -> None:
    tokenizer = CharacterTokenizer("abc\n")
    generator = TextGenerator(build_model("llama", vocab_size=tokenizer.vocab_size), tokenizer)
    session = Session(generator, SHORT, write=Screen())
    session.handle("ab")
    before = session.text
    with pytest.raises(UserError, match="雪"):
        session.handle("雪")
    assert session.text == before
    session.handle("/retry")
    assert session.text.startswith("ab")
    session.handle("c")
    assert "\nc" in session.text


def test_explain_shows_every_step_of_the_last_continuation(session: Session, screen: Screen) -> None:
    session.handle("/explain")
    assert screen.take() == "there is no continuation yet\n"
    session.handle("one")
    screen.take()
    session.handle("/explain")
    assert screen.take().count(" · step ") == 8


def test_ctrl_c_stops_a_continuation_and_keeps_what_there_is(session: Session, screen: Screen) -> None:
    original = session.generator.stream

    def interrupted(*arguments: Any, **settings: Any) -> Iterator[Piece]:
        for number, piece in enumerate(original(*arguments, **settings)):
            if number == 4:
                raise KeyboardInterrupt
            yield piece

    session.generator.stream = interrupted  # type: ignore[method-assign]
    assert session.handle("one")
    assert screen.shown.endswith(" (stopped)\n")
    assert session.text == "one" + screen.take().removesuffix(" (stopped)\n")


def answers(lines: Sequence[str | type[BaseException]]) -> Callable[[str], str]:
    """Stands in for `input`: gives lines, raises exceptions."""
    waiting = iter(lines)

    def read(prompt: str) -> str:
        line = next(waiting)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_a_session_reads_lines_until_it_is_quit(
    session: Session, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str | type[BaseException]] = [
        "a \\",
        "b",
        "",
        "/nonsense",
        KeyboardInterrupt,
        "/help",
        "/quit",
        "never read",
    ]
    run_session(session, answers(lines))
    assert session.text.startswith("a \nb")
    assert screen.shown.endswith(HELP + "\n")
    assert "unknown command /nonsense" in capsys.readouterr().err


def test_a_session_goes_on_from_the_prompts_of_the_command_line(
    session: Session, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    run_session(session, answers([EOFError]), prompts=["/not a command", "b"])
    assert capsys.readouterr().out == "/not a commandb\n"
    assert session.text.startswith("/not a command")
    assert session.text.count("\nb") == 1
    assert screen.shown.count("\n") >= 2


def test_ctrl_d_ends_a_session(session: Session) -> None:
    run_session(session, answers([EOFError]))


def test_a_setting_of_the_command_line_holds_in_the_session(build_model: Callable[..., GPT], screen: Screen) -> None:
    generator = TextGenerator(build_model("llama"), ByteTokenizer())
    session = Session(generator, SamplingConfig(max_new_tokens=3, num_samples=5), write=screen)
    session.handle("x")
    assert session.sampling.max_new_tokens == 3
    assert len(ByteTokenizer().encode(session.text)) <= 1 + 3 * 3
