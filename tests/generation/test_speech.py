"""Speech with a fake engine for every failure, and for real where espeak-ng is installed."""

import json
import shutil
import sys
import textwrap
import time
import wave
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command_line import MissingPackageError, UserError
from generation import speech
from generation.config import SpeechConfig
from generation.sound_file import language_parts, speak_to_file
from generation.speech import Speaker, SpeechError, list_voices, text_language
from generation.speech_worker import choose_voice

ENGINE = """
    import json, threading, time
    LOG = {log!r}

    class Voice:
        def __init__(self, id, name, languages):
            self.id, self.name, self.languages = id, name, languages

    class Engine:
        def __init__(self):
            self.said = dict()
        def getProperty(self, name):
            return [Voice("gmw/en", "English", ["en-gb"]), Voice("sit/cmn", "Chinese (Mandarin)", [b"\\x05cmn"])]
        def setProperty(self, name, value):
            self.said[name] = value
        def connect(self, topic, callback):
            self.callback = callback
        def say(self, text):
            self.said["text"] = text
        def save_to_file(self, text, path):
            open(path, "wb").write(b"RIFF")
            self.said.update(text=text, path=path)
        def runAndWait(self):
            {trouble}
            with open(LOG, "a") as file:
                file.write(json.dumps(self.said) + chr(10))
            # As espeak does: the end is told from another thread, after runAndWait has returned.
            threading.Timer(0.05, self.callback, ("finished-utterance", True)).start()

    def init():
        {start_trouble}
        return Engine()
"""

SOUND = (
    "import wave; sound = wave.open(self.said['path'], 'wb'); sound.setparams((1, 2, 8000, 0, 'NONE', '')); "
    "sound.writeframes(self.said['text'].encode('utf-16-le')); sound.close()"
)
"""Writes the text itself as the samples of a sound file."""

FakeEngine = Callable[..., Callable[[], list[dict[str, Any]]]]


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Puts a fake pyttsx3 before the real one; returns a function that reads what it was asked to say."""

    def install(trouble: str = "pass", start_trouble: str = "pass") -> Callable[[], list[dict[str, Any]]]:
        log = tmp_path / "said.jsonl"
        code = textwrap.dedent(ENGINE).format(log=str(log), trouble=trouble, start_trouble=start_trouble)
        (tmp_path / "pyttsx3.py").write_text(code)
        (tmp_path / "aplay").write_text("#!/bin/sh\n")
        (tmp_path / "aplay").chmod(0o755)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.syspath_prepend(str(tmp_path))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return install


def speak(pieces: list[str], **settings: Any) -> list[str]:
    """Speak pieces of text; returns the notices."""
    notices: list[str] = []
    with Speaker(SpeechConfig(**settings), notices.append) as speaker:
        for piece in pieces:
            speaker.push(piece)
    return notices


def test_sentences_are_spoken_one_by_one_with_the_settings(fake_engine: FakeEngine) -> None:
    said = fake_engine()
    assert speak(["One sen", "tence. Two", "! And the rest"], speech_rate=120, speech_volume=0.5) == []
    assert [utterance["text"] for utterance in said()] == ["One sentence.", "Two!", "And the rest"]
    assert {(utterance["rate"], utterance["volume"]) for utterance in said()} == {(120, 0.5)}


def test_a_sentence_is_spoken_while_the_text_still_streams(fake_engine: FakeEngine) -> None:
    said = fake_engine()
    with Speaker(SpeechConfig(), lambda notice: None) as speaker:
        speaker.push("First. Se")
        deadline = time.monotonic() + 20
        while not said() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [utterance["text"] for utterance in said()] == ["First."]
        speaker.push("cond.")


def test_chinese_sentences_get_the_chinese_voice_and_others_the_engines_own(fake_engine: FakeEngine) -> None:
    said = fake_engine()
    speak(["武松打虎。Then he slept."])
    assert [utterance.get("voice") for utterance in said()] == ["sit/cmn", None]


def test_a_named_voice_is_used_and_an_unknown_one_is_one_line(fake_engine: FakeEngine) -> None:
    said = fake_engine()
    assert speak(["武松。"], voice="ENGLISH") == []
    assert said()[0]["voice"] == "gmw/en"
    assert speak(["Hello."], voice="Nobody") == ["no speech: there is no voice 'Nobody'; see --list-voices"]


@pytest.mark.parametrize(
    ("trouble", "start_trouble", "expected"),
    [
        ("pass", "raise OSError('libespeak.so.1: cannot open')", "OSError: libespeak.so.1: cannot open"),
        ("pass", "raise KeyError('sapi5')", "KeyError: 'sapi5'"),
        ("raise RuntimeError('run loop already started')", "pass", "RuntimeError: run loop already started"),
        ("import os; os._exit(11)", "pass", "the speech engine ended with code 11"),
    ],
)
def test_a_failure_is_one_line_and_the_rest_of_the_text_is_not_tried(
    fake_engine: FakeEngine, trouble: str, start_trouble: str, expected: str
) -> None:
    fake_engine(trouble, start_trouble)
    notices = speak(["One. Two. Three."])
    assert len(notices) == 1
    assert notices[0].startswith(f"no speech: {expected}")
    assert "\n" not in notices[0]


def test_a_sound_that_could_not_be_played_is_told_although_the_engine_is_content(fake_engine: FakeEngine) -> None:
    said = "aplay: main:831: audio open error: No such file or directory"
    fake_engine(f"import sys; print('ALSA lib: no card', {said!r}, sep=chr(10), file=sys.stderr)")
    assert speak(["One. Two."]) == [f"no speech: {said} (is there a sound device? --speak-to FILE.wav needs none)"]


def test_a_hanging_engine_is_given_up(fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_engine("time.sleep(600)")
    monkeypatch.setattr(speech, "START_SECONDS", 1.0)
    monkeypatch.setattr(speech, "SECONDS_PER_CHARACTER", 0.0)
    assert speak(["One. Two."]) == ["no speech: the speech engine did not answer within 1 s"]


def test_ctrl_c_ends_an_utterance_at_once(fake_engine: FakeEngine) -> None:
    fake_engine("time.sleep(600)")
    started = time.monotonic()
    notices: list[str] = []

    def interrupted() -> None:
        with Speaker(SpeechConfig(), notices.append) as speaker:
            speaker.push("One. Two. ")
            time.sleep(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 30
    assert notices == []


def test_without_pyttsx3_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    notices = speak(["One. Two."])
    assert notices == ["no speech: speech needs the package pyttsx3, which is not installed; run: pip install pyttsx3"]


def test_nothing_to_say_starts_no_engine(fake_engine: FakeEngine) -> None:
    said = fake_engine()
    assert speak(["", " \n ", "\x00\x1b"]) == []
    assert said() == []


def test_long_texts_and_emoji_reach_the_engine_whole(fake_engine: FakeEngine) -> None:
    said = fake_engine()
    text = "word 😀 " * 15_000 + "end."
    assert speak([text]) == []
    assert said()[0]["text"] == text


@pytest.mark.parametrize(
    ("text", "language"),
    [("Hello there", None), ("武松打虎。", "zh"), ("他说 OK 就走了", "zh"), ("The word 武 here", None), ("123!", None)],
)
def test_the_language_is_that_of_the_letters(text: str, language: str | None) -> None:
    assert text_language(text) == language


def test_a_mandarin_voice_is_preferred_to_a_cantonese_one() -> None:
    cantonese = SimpleNamespace(id="sit/yue", name="Chinese (Cantonese)", languages=["yue"])
    mandarin = SimpleNamespace(id="sit/cmn", name="Chinese (Mandarin)", languages=["cmn"])
    assert choose_voice([cantonese, mandarin], None, "zh") is mandarin
    assert choose_voice([cantonese], None, "zh") is cantonese
    assert choose_voice([], None, "zh") is None


@pytest.mark.parametrize("volume", [-0.1, 1.1, 100.0])
def test_a_volume_outside_0_to_1_is_refused(volume: float) -> None:
    with pytest.raises(UserError, match="--speech-volume must be a finite number at least 0 and at most 1, but is"):
        SpeechConfig(speech_volume=volume)


def test_a_sound_file_is_a_wav_file() -> None:
    with pytest.raises(UserError, match=r"--speak-to must name a file that ends in .wav, but is 'out.mp3'"):
        SpeechConfig(speak_to="out.mp3")


def test_a_file_that_the_engine_did_not_write_is_told_and_an_older_one_kept(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"older")
    fake_engine(trouble="import os; os.unlink(self.said['path'])")
    with pytest.raises(SpeechError, match=rf"the engine wrote no file {path}"):
        speak_to_file("Hello.", path, SpeechConfig())
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".wav"] == ["out.wav"]


def test_a_folder_that_is_not_there_and_a_text_without_words_start_no_engine(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    said = fake_engine()
    with pytest.raises(SpeechError, match=rf"there is no folder {tmp_path}/missing for out.wav"):
        speak_to_file("Hello.", tmp_path / "missing" / "out.wav", SpeechConfig())
    with pytest.raises(SpeechError, match="there is nothing to say"):
        speak_to_file(" \n", tmp_path / "out.wav", SpeechConfig())
    assert said() == []
    speak_to_file("Hello.", tmp_path / "out.wav", SpeechConfig())
    assert (tmp_path / "out.wav").read_bytes() == b"RIFF"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two!", ["One. Two!"]),
        ("One. 老虎笑了。3. Two.", ["One.", " 老虎笑了。3.", " Two."]),
        ("…老虎。武松。 12. The end", ["…老虎。武松。 12.", " The end"]),
        ("The tiger 老虎 laughs.", ["The tiger 老虎 laughs."]),
        ("", []),
    ],
)
def test_a_text_is_cut_where_its_language_changes(text: str, parts: list[str]) -> None:
    assert language_parts(text) == parts
    assert "".join(parts) == text


def test_every_language_of_a_sound_file_gets_its_voice_unless_one_was_asked_for(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    said = fake_engine(trouble=SOUND)
    speak_to_file("One. 老虎。 Two.", tmp_path / "out.wav", SpeechConfig())
    assert [(part["text"], part.get("voice")) for part in said()] == [
        ("One.", None),
        ("老虎。", "sit/cmn"),
        ("Two.", None),
    ]
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.readframes(99) == b"".join(text.encode("utf-16-le") for text in ("One.", "老虎。", "Two."))
    speak_to_file("One. 老虎。 Two.", tmp_path / "out.wav", SpeechConfig(voice="English"))
    assert [part["voice"] for part in said()[3:]] == ["gmw/en"]


# ---- for real ----------------------------------------------------------------------------------------------------

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None or sys.platform != "linux", reason="espeak-ng is not installed"
)


def sound(path: Path) -> tuple[float, int]:
    """Length in seconds and loudest sample of a 16-bit WAV file."""
    with wave.open(str(path)) as file:
        samples = array("h", file.readframes(file.getnframes()))
        return file.getnframes() / file.getframerate(), max(map(abs, samples), default=0)


@needs_espeak
def test_real_speech_has_sound_and_the_expected_length(tmp_path: Path) -> None:
    pytest.importorskip("pyttsx3", reason="pyttsx3 is not installed")
    text = "The quick brown fox jumps over the lazy dog near the river bank today. " * 2
    n_words = len(text.split())
    lengths: dict[int, float] = {}
    for _ in range(3):  # on a busy machine espeak has been seen to lose a rate
        for rate in (100, 200):
            speak_to_file(text, tmp_path / "out.wav", SpeechConfig(speech_rate=rate))
            lengths[rate], loudest = sound(tmp_path / "out.wav")
            assert loudest > 1000
        if lengths[100] > 1.5 * lengths[200]:
            break
    assert 60 * n_words / 200 * 0.6 < lengths[200] < 60 * n_words / 200 * 1.6
    assert lengths[100] > 1.5 * lengths[200]


@needs_espeak
def test_real_volume_and_chinese(tmp_path: Path) -> None:
    pytest.importorskip("pyttsx3", reason="pyttsx3 is not installed")
    loudness = {}
    for volume in (0.2, 1.0):
        speak_to_file("武松打死了一只老虎。", tmp_path / "out.wav", SpeechConfig(speech_volume=volume))
        seconds, loudness[volume] = sound(tmp_path / "out.wav")
        assert 1 < seconds < 10
    assert loudness[0.2] < 0.6 * loudness[1.0]


@needs_espeak
def test_real_voices_are_listed() -> None:
    pytest.importorskip("pyttsx3", reason="pyttsx3 is not installed")
    assert "gmw/en" in list_voices()


def test_a_missing_package_is_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError):
        list_voices()
