"""One utterance in a process of its own: reads a request as JSON from stdin, speaks it or writes a sound file.

Speech engines hang, print and crash in ways that no thread survives (a second `runAndWait` in one process never
returns on Linux, pyttsx3 issue 280), so the program that writes the text never touches one. Whatever goes wrong here
ends this process with the reason in the last line of stderr.
"""

import json
import shutil
import sys
import threading
from collections.abc import Sequence
from typing import Any

# Languages as engines write them, the most likely first.
_SPELLINGS = {"zh": ("cmn", "zh-cn", "zh_cn", "mandarin", "chinese", "zh")}


def main() -> None:
    """Serve one request: {"text", "path", "rate", "volume", "voice", "language"}, or {"list": true}."""
    request = json.load(sys.stdin)
    import pyttsx3

    engine = pyttsx3.init()
    voices: Sequence[Any] = engine.getProperty("voices") or ()
    if request.get("list"):
        print(json.dumps([{"id": v.id, "name": v.name, "languages": _languages(v)} for v in voices]))
        return
    engine.setProperty("rate", request["rate"])
    engine.setProperty("volume", request["volume"])
    voice = choose_voice(voices, request["voice"], request["language"])
    if voice is not None:
        engine.setProperty("voice", voice.id)
    finished = threading.Event()
    engine.connect("finished-utterance", lambda name, completed: finished.set())
    if request["path"]:
        engine.save_to_file(request["text"], request["path"])
    else:
        # pyttsx3 plays through this program on Linux and says nothing when it is missing.
        if sys.platform == "linux" and shutil.which("aplay") is None:
            sys.exit("the program aplay is missing; install alsa-utils, or use --speak-to FILE.wav")
        engine.say(request["text"])
    engine.runAndWait()
    if sys.platform == "linux":
        # With espeak `runAndWait` returns while a thread still speaks; whoever ends now cuts the sentence off.
        finished.wait()


def choose_voice(voices: Sequence[Any], wanted: str | None, language: str | None) -> Any:
    """The voice of a name, else one of the language, else None for the engine's own; exits when the name is unknown."""
    if wanted is not None:
        for voice in voices:
            if wanted.lower() in f"{voice.id}\n{voice.name}".lower():
                return voice
        sys.exit(f"there is no voice {wanted!r}; see --list-voices")
    for spelling in _SPELLINGS.get(language or "", ()):
        for voice in voices:
            names = [voice.id, voice.name, *_languages(voice)]
            if any(spelling in str(name).lower() for name in names):
                return voice
    return None


def _languages(voice: Any) -> list[str]:
    """Language codes of a voice; some engines give bytes with a length before the letters."""
    return [
        code.decode("utf-8", errors="ignore").strip("\x00\x05\x02 ") if isinstance(code, bytes) else str(code)
        for code in voice.languages or ()
    ]


if __name__ == "__main__":
    main()
