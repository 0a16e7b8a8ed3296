"""Speaks a text while it streams; whatever fails costs one line on stderr and never the text."""

import importlib.util
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from command_line import MissingPackageError, UserError
from generation.config import SpeechConfig
from generation.sentence_ends import SentenceEnds

WORKER = (sys.executable, "-m", "generation.speech_worker")

START_SECONDS = 20.0
"""Time for an engine to start before it counts as hung."""
SECONDS_PER_CHARACTER = 0.5
"""A slow voice takes about 0.1 s for a letter and 0.3 s for a Chinese character."""


class SpeechError(UserError):
    """An utterance that could not be spoken; the message says why."""


def check_installed() -> None:
    """Raise MissingPackageError unless pyttsx3 is there, without loading it."""
    if importlib.util.find_spec("pyttsx3") is None:
        raise MissingPackageError("pyttsx3", "speech")


def text_language(text: str) -> str | None:
    """`zh` for a text with a good share of Chinese characters, else None: the engine's own voice will do."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum("㐀" <= character <= "鿿" or character >= "\U00020000" for character in letters)
    return "zh" if letters and chinese / len(letters) > 0.3 else None


def speakable(text: str) -> str:
    """The text without what no engine can pronounce; empty when nothing is left."""
    return "".join(character for character in text if character.isprintable() or character.isspace()).strip()


class Speaker:
    """Speaks complete sentences one after the other, while the text goes on; a context manager.

    Leaving it waits until all is spoken; leaving it by an exception (Ctrl-C) stops at once. The first failure is told
    to `notify` in one line, and the speaker is silent from then on.
    """

    def __init__(self, config: SpeechConfig, notify: Callable[[str], None], worker: Sequence[str] = WORKER) -> None:
        self._config = config
        self._notify = notify
        self._utterance = Utterance(worker)
        self._ends = SentenceEnds()
        self._begun = ""
        self._sentences: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Speaker":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sentences.put(self._begun)
        self._sentences.put(None)
        if kind is None:
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self._stop()
                raise
        else:
            self._stop()

    def push(self, text: str) -> None:
        """Take the next characters; every sentence that they complete will be spoken."""
        start = 0
        for end in self._ends.find(text):
            self._sentences.put(self._begun + text[start:end])
            self._begun, start = "", end
        self._begun += text[start:]

    def _stop(self) -> None:
        self._stopped.set()
        self._utterance.kill()
        self._thread.join()

    def _work(self) -> None:
        while (sentence := self._sentences.get()) is not None:
            if self._stopped.is_set():
                continue
            try:
                self._utterance.speak(sentence, self._config)
            except UserError as error:
                if not self._stopped.is_set():
                    self._notify(f"no speech: {error}")
                self._stopped.set()


class Utterance:
    """Speaks one text in a process of its own, which can be killed."""

    def __init__(self, worker: Sequence[str] = WORKER) -> None:
        self._worker = worker
        self._process: subprocess.Popen[str] | None = None

    def speak(self, text: str, config: SpeechConfig, path: Path | None = None) -> None:
        """Speak a text, or write it to a sound file; returns when it is done. Raises SpeechError."""
        text = speakable(text)
        if not text:
            return
        request = {
            "text": text,
            "path": str(path.absolute()) if path else None,
            "rate": config.speech_rate,
            "volume": config.speech_volume,
            "voice": config.voice,
            "language": text_language(text),
        }
        self.request(request, START_SECONDS + SECONDS_PER_CHARACTER * len(text))

    def request(self, values: dict[str, Any], time_limit_seconds: float) -> str:
        """Send one request to a worker and return what it prints; raises SpeechError when it fails or hangs."""
        check_installed()
        # A session of its own: Ctrl-C reaches this program alone, which then ends the worker.
        with subprocess.Popen(
            self._worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
        ) as process:
            self._process = process
            try:
                out, err = process.communicate(json.dumps(values), timeout=time_limit_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise SpeechError(f"the speech engine did not answer within {time_limit_seconds:.0f} s") from None
            finally:
                self._process = None
        lines = err.strip().splitlines()
        # pyttsx3 does not ask what became of the program that plays the sound on Linux.
        is_silent = any(line.startswith("aplay: ") for line in lines)
        if process.returncode != 0 or is_silent:
            lines = lines or [f"the speech engine ended with code {process.returncode}"]
            raise SpeechError(f"{lines[-1]}{_advice(err)}")
        return out

    def kill(self) -> None:
        """End the utterance that is being spoken, if any."""
        process = self._process
        if process is not None:
            process.kill()


def _advice(errors: str) -> str:
    """What to do about the most common failure."""
    if "\naplay: " in f"\n{errors}":
        return " (is there a sound device? --speak-to FILE.wav needs none)"
    is_missing = sys.platform == "linux" and "espeak" in errors.lower()
    return " (install the engine: sudo apt install espeak-ng)" if is_missing else ""


def list_voices(worker: Sequence[str] = WORKER) -> str:
    """The voices of this machine, one a line: id, languages, name; raises SpeechError."""
    printed = Utterance(worker).request({"list": True}, START_SECONDS)
    voices = json.loads(printed.strip().splitlines()[-1])
    return "\n".join(f"{voice['id']:30} {','.join(voice['languages']):20} {voice['name']}" for voice in voices)
