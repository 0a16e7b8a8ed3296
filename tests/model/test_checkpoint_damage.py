"""A damaged or hostile file is one CheckpointError: it never loads, never runs, never hangs, never eats the memory."""

import ast
import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from command_line import EXIT_CHECKPOINT, UserError, config_to_dict
from data.tokenizers.registry import tokenizer_from_state
from model import checkpoint_writer
from model.checkpoint import CheckpointError, load_checkpoint, read_card, save_checkpoint
from model.checkpoint_choice import newest_run_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from model.initialization import outlined

ROOT = Path(__file__).parent.parent.parent
CONFIG = ModelConfig(vocab_size=5, context_length=4, n_layer=1, n_head=1, n_embd=4, bias=False)
TRAINING_STATE = {"step": 3, "optimizer": {"state": {0: {"momentum": torch.ones(4)}}}, "best_loss": 1.25}


def values(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "kind": "gpt",
        "model_config": CONFIG,
        "state_dict": GPT(CONFIG).state_dict(),
        "tokenizer": {"kind": "char", "version": 1, "characters": "abcd"},
        "provenance": {"step": seed, "command": "python train.py"},
        "training_state": TRAINING_STATE,
    }


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "a.pt"
    save_checkpoint(path, **values(1))
    return path.read_bytes()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("other") / "a.pt"
    save_checkpoint(path, **values(2))
    return path.read_bytes()


def refused(path: Path) -> str:
    """Check that a file is refused properly, by both ways in; returns the message.

    The time is the processor's: how busy the machine is with other things does not count.
    """
    started = time.process_time()
    messages = []
    for open_file in (load_checkpoint, read_card):
        with pytest.raises(CheckpointError) as raised:
            open_file(path)
        assert raised.value.exit_code == EXIT_CHECKPOINT
        messages.append(str(raised.value))
    assert time.process_time() - started < 2
    assert messages[0] == messages[1]
    assert str(path) in messages[0]
    assert "\n" not in messages[0]
    return messages[0]


# ---- damage: the checksum is not that of the content -------------------------------------------------------------

SECTOR = 512


def flip_bits(data: bytearray, source: random.Random, other: bytes) -> None:
    for _ in range(source.randint(1, 8)):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def set_byte(data: bytearray, source: random.Random, other: bytes) -> None:
    data[source.randrange(len(data))] = source.choice((0, 0xFF, source.randrange(256)))


def truncate(data: bytearray, source: random.Random, other: bytes) -> None:
    del data[source.choice((source.randrange(len(data)), len(data) - source.randint(1, 200))) :]


def append(data: bytearray, source: random.Random, other: bytes) -> None:
    data += source.choice((b"\0", b"\n", bytes(SECTOR), source.randbytes(source.randint(1, 100)), other))


def overwrite_sector(data: bytearray, source: random.Random, other: bytes) -> None:
    start = source.randrange(len(data) // SECTOR) * SECTOR
    data[start : start + SECTOR] = source.choice((b"\0", b"\xff")) * SECTOR


def swap_sectors(data: bytearray, source: random.Random, other: bytes) -> None:
    one, two = (source.randrange(len(data) // SECTOR) * SECTOR for _ in range(2))
    data[one : one + SECTOR], data[two : two + SECTOR] = data[two : two + SECTOR], data[one : one + SECTOR]


def splice(data: bytearray, source: random.Random, other: bytes) -> None:
    start = source.randrange(len(data))
    end = source.randint(start, len(data))
    data[start:end] = other[start:end]


def cut_out(data: bytearray, source: random.Random, other: bytes) -> None:
    start = source.randrange(len(data))
    del data[start : start + source.randint(1, 300)]


MUTATORS = (flip_bits, set_byte, truncate, append, overwrite_sector, swap_sectors, splice, cut_out)


def mutated(good: bytes, other: bytes, seed: int) -> bytes:
    source = random.Random(seed)
    data = bytearray(good)
    MUTATORS[seed % len(MUTATORS)](data, source, other)
    return bytes(data)


def put(path: Path, data: bytes) -> None:
    """Overwrite a file in place: ext4 takes ten times as long for one that was cut to nothing first."""
    path.touch()
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def refusal(path: Path) -> str | None:
    """The message with which a file is refused, None when it loads."""
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return None


def assert_never_loads(path: Path, good: bytes, other: bytes, seeds: range) -> None:
    for seed in seeds:
        data = mutated(good, other, seed)
        if data in (good, other):
            continue
        put(path, data)
        message = refusal(path)
        assert message is not None, f"seed {seed}: damaged by {MUTATORS[seed % len(MUTATORS)].__name__}, and loaded"
        assert str(path) in message, f"seed {seed}"
        assert "\n" not in message, f"seed {seed}"


def test_no_damaged_file_ever_loads(tmp_path: Path, good: bytes, other: bytes) -> None:
    assert_never_loads(tmp_path / "a.pt", good, other, range(10_000))


@pytest.mark.slow
def test_no_damaged_file_ever_loads_in_a_million(tmp_path: Path, good: bytes, other: bytes) -> None:
    assert_never_loads(tmp_path / "a.pt", good, other, range(10_000, 1_010_000))


def test_no_length_of_a_cut_file_loads(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(good)
    for length in reversed(range(len(good))):
        os.truncate(path, length)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def make_text(path: Path) -> None:
    path.write_text("Once upon a time")


def make_sparse_gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no checkpoint"),
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("missing"), "there is no checkpoint"),
        (make_link_to_itself, "symbolic links"),
        (Path.touch, "is empty"),
        (make_text, "not a checkpoint of this project"),
        (make_sparse_gigabyte, "not a checkpoint of this project"),
        (lambda path: torch.save(torch.ones(3), path), "not a checkpoint of this project"),
        (lambda path: path.write_bytes(pickle.dumps({})), "not a checkpoint of this project"),
        (lambda path: path.write_bytes(b"sha256:" + b"0" * 64), "is damaged"),
    ],
)
def test_what_is_no_checkpoint_at_all_is_told_apart(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "a.pt")
    assert reason in refused(tmp_path / "a.pt")


# ---- forgery: the checksum is right, so everything behind it must hold -------------------------------------------


def with_checksum(data: bytes) -> bytes:
    return data[:-71] + b"sha256:" + hashlib.sha256(data[:-71]).hexdigest().encode()


def forged(card_text: str) -> bytes:
    """A whole file, every checksum right, that says this of itself."""

    class FixedJson:
        @staticmethod
        def dumps(value: Any) -> str:
            return card_text

    file = io.BytesIO()
    content = checkpoint_writer.CheckpointContent({**values(1), "model_config": config_to_dict(CONFIG)})
    with mock.patch.object(checkpoint_writer, "json", FixedJson):
        content.write(file)  # type: ignore[arg-type]
    return file.getvalue()


def card_of(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        card: dict[str, Any] = json.loads(archive.read("checkpoint/card.json"))
    return card


def change(card: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The card with one entry changed, named like `content/model_config/n_embd`; a callable removes or edits."""
    card = copy.deepcopy(card)
    *parents, last = path.split("/")
    place: Any = card
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    key = int(last) if isinstance(place, list) else last
    if value is REMOVED:
        del place[key]
    else:
        place[key] = value
    return card


REMOVED = object()
STATE = "content/state_dict"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("format", "other", "another format"),
        ("format_version", 2, "made by a newer version of this project"),
        ("format_version", 0, "another format"),
        ("format_version", True, "wrong type"),
        ("format_version", REMOVED, "wrong type"),
        ("byte_order", "big", "byte order"),
        ("saved_at", "today", "wrong type"),
        ("extra", 1, "unknown entries: extra"),
        ("tensors", {}, "wrong type"),
        ("tensors/0", [], "malformed"),
        ("tensors/0/dtype", "complex64", "unknown type"),
        ("tensors/0/shape", [2**40, 2**40], "cannot have"),
        ("tensors/0/shape", [-1, -20], "impossible shape"),
        ("tensors/0/shape", [1] * 17 + [5, 4], "impossible shape"),
        ("tensors/0/shape", [True, 20], "impossible shape"),
        ("tensors/0/offset", -64, "outside of the file"),
        ("tensors/0/offset", 2**62, "outside of the file"),
        ("tensors/-1/offset", 2**62, "outside of the file"),
        ("tensors/1/offset", 64, "over another one"),
        ("tensors/0/extra", 1, "unknown entries: extra"),
        ("content", [], "wrong type"),
        ("content/extra", 1, "unknown entries: extra"),
        ("content/kind", 3, "wrong type"),
        ("content/provenance", None, "wrong type"),
        ("content/training_state", [], "wrong type"),
        ("content/tokenizer", {}, "'kind'"),
        ("content/tokenizer/vocab_size", 6, "vocabulary"),
        ("content/model_config/n_embd", 6, "has shape"),
        ("content/model_config/n_embd", 2**19, "more weights than it holds"),
        ("content/model_config/vocab_size", 10**400, "n"),
        ("content/model_config/n_layer", 1000, "more weights than it holds"),
        ("content/model_config/n_layer", 2, "misses weight"),
        ("content/model_config/positions", "rotary", "unknown weight"),
        ("content/model_config/n_head", 3, "multiple"),
        ("content/model_config/color", "red", "no entry 'color'"),
        ("content/model_config/tied_head", False, "is not"),
        (f"{STATE}/head.weight", REMOVED, "misses weight"),
        (f"{STATE}/extra", {"$tensor": 0}, "unknown weight"),
        (f"{STATE}/head.weight", {"$tensor": 99}, "does not exist"),
        (f"{STATE}/head.weight", {"$tensor": -1}, "does not exist"),
        (f"{STATE}/head.weight", {"$tensor": 1}, "has shape"),
        (f"{STATE}/head.weight", 1.5, "something else than tensors"),
        ("content/tokenizer/characters", {"$tensor": 0}, "tokenizer holds a tensor"),
        ("content/provenance/losses", [[{"$tensor": 0}]], "provenance holds a tensor"),
        (STATE, {"$items": [[1, 2, 3]]}, "malformed"),
        (STATE, {"$other": 1}, "malformed"),
    ],
)
def test_a_forged_card_is_refused_for_its_reason(
    tmp_path: Path, good: bytes, path: str, value: Any, reason: str
) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(forged(json.dumps(change(card_of(good), path, value))))
    if path == "content/model_config/tied_head":
        loaded = load_checkpoint(file)  # both names point to one tensor of the right shape, which an untied head may
        assert not loaded.model_config.tied_head
        return
    with pytest.raises(CheckpointError, match=reason) as raised:
        load_checkpoint(file)
    assert str(file) in str(raised.value)
    assert len(str(raised.value)) < 600


def test_weights_of_integers_are_refused(tmp_path: Path, good: bytes) -> None:
    card = card_of(good)
    for entry in card["tensors"]:
        entry["dtype"] = {"float32": "int32"}.get(entry["dtype"], entry["dtype"])
    (tmp_path / "a.pt").write_bytes(forged(json.dumps(card)))
    with pytest.raises(CheckpointError, match="weights are of type int32"):
        load_checkpoint(tmp_path / "a.pt")


def test_an_unforged_card_loads(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(forged(json.dumps(card_of(good))))
    assert load_checkpoint(tmp_path / "a.pt").provenance["step"] == 1


NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 64, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 10_000, "../../etc/passwd", "\0", "\ud800", "float64", "builtins.eval", "{__class__}"),
    *([], {}, [[]], [0], {"$tensor": 0}, {"$tensor": 3}, {"$tensor": -1}, {"$tensor": "0"}, {"$items": []}),
    *({"$items": [[1, 1]]}, {"$items": [[[], 1]]}, {"_target_": "os.system"}, {"class_path": "os.system"}),
)


def forged_at_random(card: dict[str, Any], good: bytes, other: bytes, seed: int) -> bytes:
    """Bytes, card text or card entries changed, then every checksum made right again."""
    source = random.Random(seed)
    if seed % 3 == 0:
        return with_checksum(mutated(good, other, seed // 3) if len(mutated(good, other, seed // 3)) > 71 else good)
    if seed % 3 == 1:
        text = bytearray(json.dumps(card).encode())
        for _ in range(source.randint(1, 4)):
            start = source.randrange(len(text))
            text[start : start + source.randint(0, 3)] = bytes(source.choices(b'0123456789-+.eE[]{}",:$ntf\\ux', k=2))
        return forged(text.decode("ascii", "replace"))
    card = copy.deepcopy(card)
    for _ in range(source.randint(1, 3)):
        place: Any = card
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = source.choice(list(keys))
            if isinstance(place[key], dict | list) and place[key] and source.random() < 0.8:
                place = place[key]
                continue
            kind = source.randrange(4)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, dict):
                place["x" * source.randint(0, 2)] = copy.deepcopy(source.choice(NASTY))
            else:
                place[key] = copy.deepcopy(source.choice(NASTY))
            break
    return forged(json.dumps(card))


def assert_refused_or_sound(path: Path, seed: int) -> None:
    started = time.process_time()
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        message = str(error)
    else:
        message = f"{path} is sound"
        if checkpoint.kind == "gpt":
            with outlined():
                expected = GPT(checkpoint.model_config).state_dict()
            assert set(checkpoint.state_dict) == set(expected)
            for name, weight in expected.items():
                assert checkpoint.state_dict[name].shape == weight.shape
                assert checkpoint.state_dict[name].is_floating_point()
            checkpoint.build_model()
        with contextlib.suppress(UserError):
            tokenizer_from_state(checkpoint.tokenizer)
    assert str(path) in message
    assert "\n" not in message
    assert time.process_time() - started < 1, f"it took {time.process_time() - started:.1f} s"


def run_in_children(task: Callable[[int], None], seeds: range, per_child: int) -> None:
    """Run a task for every seed in forked children with little memory; fails naming the seed that killed one."""
    for first in range(seeds.start, seeds.stop, per_child):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            report, status = "", 1
            try:
                limit = resident_bytes("VmSize") + 300_000_000
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                for seed in range(first, min(first + per_child, seeds.stop)):
                    report = f"seed {seed}"
                    os.write(writable, f"{report}\n".encode())
                    before = resident_bytes("VmHWM")
                    task(seed)
                    assert resident_bytes("VmHWM") - before < 50_000_000, "too much memory"
                status = 0
            except BaseException as error:  # noqa: BLE001 - a forked child must not run on into pytest
                os.write(writable, f"{report}: {type(error).__name__}: {error}\n".encode()[:4000])
            os._exit(status)
        os.close(writable)
        with os.fdopen(readable, encoding="utf-8") as pipe:
            lines = pipe.read().splitlines()
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"{lines[-1]} (status {status})"


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_forgeries_are_harmless(path: Path, good: bytes, other: bytes, seeds: range) -> None:
    card = card_of(good)

    def task(seed: int) -> None:
        put(path, forged_at_random(card, good, other, seed))
        assert_refused_or_sound(path, seed)

    run_in_children(task, seeds, per_child=100)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("one_thread")
def test_forgeries_at_random_are_refused_or_sound(tmp_path: Path, good: bytes, other: bytes) -> None:
    assert_forgeries_are_harmless(tmp_path / "a.pt", good, other, range(2_000))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("one_thread")
def test_a_hundred_thousand_forgeries_are_refused_or_sound(tmp_path: Path, good: bytes, other: bytes) -> None:
    assert_forgeries_are_harmless(tmp_path / "a.pt", good, other, range(2_000, 102_000))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps([[]]),
        "null",
        "",
        '{"format": "mini-gpt checkpoint", "format_version": ' + "9" * 5000 + "}",
        '{"format": "mini-gpt checkpoint", "format_version": 99}',
        '{"format": "mini-gpt checkpoint", "format_version": 1, "con\\ntent": {}}',
        "\x00",
        '"\\ud800"',
    ],
)
def test_json_attacks_end_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pt").write_bytes(forged(text))
    refused(tmp_path / "a.pt")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint/card.json", b" " * 300_000_000)
        archive.comment = b" " * 71
    (tmp_path / "a.pt").write_bytes(with_checksum(file.getvalue()))
    assert "impossible size" in refused(tmp_path / "a.pt")


# ---- malice: files that want to run something --------------------------------------------------------------------


class Payload:
    """Unpickles by calling a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def payloads(marker: Path) -> dict[str, Payload]:
    program = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch '{marker}'"),
        "eval": Payload(eval, program),
        "exec": Payload(exec, program),
        "os.open": Payload(os.open, str(marker), os.O_CREAT),
        "subprocess": Payload(subprocess.call, ["touch", str(marker)]),
        "path": Payload(Path.touch, marker),
    }


def as_zip(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def as_tar(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    return file.getvalue()


def as_npy(pickled: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([0], dtype=object), allow_pickle=True)
    header = file.getvalue()[: 10 + struct.unpack("<H", file.getvalue()[8:10])[0]]
    return header + pickled


def with_own_comment(data: bytes) -> bytes:
    return with_checksum(data + b" " * 71)


def in_our_zip(pickled: bytes) -> bytes:
    """A real checkpoint, every checksum right, but for the pickle that plain PyTorch would read."""
    file = io.BytesIO()
    content = checkpoint_writer.CheckpointContent({**values(1), "model_config": config_to_dict(CONFIG)})
    with mock.patch.object(checkpoint_writer, "pickle_plain_data", return_value=pickled):
        content.write(file)  # type: ignore[arg-type]
    return file.getvalue()


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    **{f"protocol {protocol}": bytes for protocol in range(6)},
    "legacy torch": lambda pickled: pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickled,
    "zip": as_zip,
    "tar": as_tar,
    "npy": as_npy,
    "pickle with our checksum": with_own_comment,
    "zip with our checksum": lambda pickled: with_own_comment(as_zip(pickled)),
    "our zip": in_our_zip,
}


def test_the_payloads_do_run_when_they_are_unpickled(tmp_path: Path) -> None:
    for payload in payloads(tmp_path / "marker").values():
        pickle.loads(pickle.dumps(payload))
        assert (tmp_path / "marker").exists()
        (tmp_path / "marker").unlink()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("payload", ["os.system", "eval", "exec", "os.open", "subprocess", "path"])
def test_a_malicious_file_runs_nothing(tmp_path: Path, container: str, payload: str) -> None:
    marker, run = tmp_path / "marker", tmp_path / "runs" / "evil"
    run.mkdir(parents=True)
    protocol = int(container[-1]) if container.startswith("protocol") else 2
    pickled = pickle.dumps(payloads(marker)[payload], protocol=protocol)
    (run / "best.pt").write_bytes(CONTAINERS[container](pickled))
    if container == "our zip":
        load_checkpoint(run / "best.pt").build_model()  # all that we read of it is sound
    else:
        refused(run / "best.pt")
        with pytest.raises(CheckpointError):
            newest_run_checkpoint(tmp_path / "runs")
    assert not marker.exists()


def project_files() -> list[Path]:
    rooms = ("data", "model", "training", "generation")
    return [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]


def test_nothing_in_the_project_can_unpickle_or_evaluate() -> None:
    assert len(project_files()) > 20
    for path in project_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}, path
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert name not in ("eval", "exec", "os.system", "__import__"), f"{path}:{node.lineno}"
                assert not name.startswith("pickle."), f"{path}:{node.lineno}"
                assert name != "torch.load" or flags.get("weights_only") == "True", f"{path}:{node.lineno}"
                assert flags.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
                assert flags.get("shell", "False") == "False", f"{path}:{node.lineno}"
