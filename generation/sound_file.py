"""Speaks a text into a WAV file, each language by a voice of its own."""

import os
import shutil
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path

from generation.config import SpeechConfig
from generation.sentence_ends import SentenceEnds
from generation.speech import WORKER, SpeechError, Utterance, speakable, text_language


def speak_to_file(text: str, path: Path, config: SpeechConfig, worker: Sequence[str] = WORKER) -> None:
    """Write a spoken text as a WAV file; raises SpeechError."""
    if not speakable(text):
        raise SpeechError("there is nothing to say")
    if not path.parent.is_dir():
        # An engine that cannot write says nothing and never comes to its end.
        raise SpeechError(f"there is no folder {path.parent} for {path.name}")
    # An older file must neither pass for this one nor be lost when the engine fails.
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}.wav")
    try:
        with tempfile.TemporaryDirectory(prefix="speech-") as folder:
            # A voice that was asked for speaks all.
            parts = [text] if config.voice is not None else language_parts(text)
            sounds = [Path(folder) / f"{number}.wav" for number in range(len(parts))]
            for part, sound in zip(parts, sounds, strict=True):
                Utterance(worker).speak(part, config, sound)
                if not sound.is_file() or not sound.stat().st_size:
                    raise SpeechError(f"the engine wrote no file {path}")
            _join(sounds, unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise SpeechError(f"cannot write {path}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def language_parts(text: str) -> list[str]:
    """The text cut between sentences where its language changes; a sentence without letters stays with those before."""
    ends = SentenceEnds().find(text)
    parts: list[str] = []
    languages: list[str | None] = []
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        sentence = text[start:end]
        has_letters = any(character.isalpha() for character in sentence)
        if parts and (not has_letters or text_language(sentence) == languages[-1]):
            parts[-1] += sentence
        elif speakable(sentence):
            parts.append(sentence)
            languages.append(text_language(sentence))
    return parts


def _join(sounds: Sequence[Path], path: Path) -> None:
    """One WAV file of several that an engine wrote; raises SpeechError when they do not fit together."""
    if len(sounds) == 1:
        shutil.copyfile(sounds[0], path)
        return
    try:
        with wave.open(str(path), "wb") as joined:
            for number, sound in enumerate(sounds):
                with wave.open(str(sound), "rb") as part:
                    if number == 0:
                        joined.setparams(part.getparams())
                    elif part.getparams()[:3] != joined.getparams()[:3]:
                        raise SpeechError("the voices of the two languages record differently; choose one with --voice")
                    joined.writeframes(part.readframes(part.getnframes()))
    except (wave.Error, EOFError):
        raise SpeechError(
            "the engine writes no WAV files that could be joined; choose one voice with --voice"
        ) from None
