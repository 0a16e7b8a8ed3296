"""The corpora known by name: those that ship with the project, and public ones that are fetched once."""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from command_line import UserError
from data.shards import DiskError

ROOM = Path(__file__).parent
CORPORA_FOLDER = ROOM / "corpora"
TIMEOUT_SECONDS = 30

SHIPPED = {
    "tales-en": (ROOM / "tales" / "en",),
    "tales-zh": (ROOM / "tales" / "zh",),
    "tales": (ROOM / "tales" / "en", ROOM / "tales" / "zh"),
}


@dataclass(frozen=True)
class PublicCorpus:
    """A text that is fetched from its public address and must have this SHA-256."""

    url: str
    sha256: str
    about: str


PUBLIC = {
    "tinyshakespeare": PublicCorpus(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "40,000 lines of Shakespeare, 1.1 MB",
    ),
    "the-verdict": PublicCorpus(
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        "a short story by Edith Wharton, 20 kB",
    ),
    # The checksum is the one that the nanoGPT example of Lux.jl (github.com/LuxDL/Lux.jl) checks after its download.
    "shakespeare": PublicCorpus(
        "https://cs.stanford.edu/people/karpathy/char-rnn/shakespeare_input.txt",
        "59a0ad62833b2e15ec811c548618876359e902717431236e52699a0e2bc253ca",
        "all of Shakespeare, 4.6 MB",
    ),
}

CORPUS_NAMES = (*SHIPPED, *PUBLIC)


def fetch_corpus(name: str, folder: Path = CORPORA_FOLDER) -> Path:
    """The file of a public corpus, downloaded unless it lies there already; raises UserError."""
    corpus, path = PUBLIC[name], folder / f"{name}.txt"
    if not path.exists():
        download(corpus.url, path, corpus.sha256)
    elif file_hash(path) != corpus.sha256:
        raise UserError(f"{path} is not the known text of {name} (its SHA-256 differs); delete it to fetch it again")
    return path


def fetch_url(url: str, folder: Path = CORPORA_FOLDER) -> Path:
    """The file of any address, downloaded once; delete it to fetch it again. Raises UserError."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "index"
    # The end of the name is kept, since it says what the file is (.jsonl, .gz).
    safe_name = re.sub(r"[^A-Za-z0-9._-]", "_", name[-100:])
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{safe_name}"
    if not path.exists():
        download(url, path)
    return path


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """Download a file; it gets its name only when all of it is there and has the SHA-256. Raises UserError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _stream(url, partial)
        if sha256 is not None and digest != sha256:
            raise UserError(
                f"what {url} gives now is not the known text (SHA-256 {digest} instead of {sha256}); "
                f"put the right file at {path} by hand"
            )
        partial.replace(path)
    # URLError is an OSError too: an errno tells a full disk from a missing network.
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, EOFError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot fetch {url} ({reason}); without a network, put the file at {path} by hand, "
            "or use --data tales-en, which ships with the project"
        ) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{url} is no address that can be fetched ({error})") from error
    except OSError as error:
        raise DiskError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _stream(url: str, path: Path) -> str:
    digest, received = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "mini-gpt"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
        expected = int(response.headers.get("Content-Length") or 0)
        with tqdm(
            total=expected or None, unit="B", unit_scale=True, desc=f"fetching {path.name.split('.')[0]}",
            disable=not sys.stderr.isatty(), leave=False,
        ) as bar:  # fmt: skip
            while block := response.read(1 << 16):
                file.write(block)
                digest.update(block)
                received += len(block)
                bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if received < expected:
        raise EOFError(f"the connection ended after {received} of {expected} bytes")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
