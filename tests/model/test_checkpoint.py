"""What goes into a checkpoint comes out of it, with ours and with plain PyTorch."""

import io
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint as checkpoints
from model import durable_files
from model.checkpoint import (
    CheckpointError,
    StorageError,
    load_checkpoint,
    read_card,
    save_checkpoint,
    verify_checkpoint,
)
from model.checkpoint_choice import newest_run_checkpoint
from model.config import ModelConfig
from model.gpt import GPT

FIXTURES = Path(__file__).parent.parent / "fixtures"
TOKENIZER = {"kind": "char", "version": 1, "characters": "".join(map(chr, range(97, 127)))}
OURS = {"tied_head": False, "positions": "rotary", "bias": False, "bigram_rows": 64, "feed_forward": "swiglu"}


def tiny_config(**changes: Any) -> ModelConfig:
    values = {"vocab_size": 31, "context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, **changes}
    return ModelConfig(**values)


def tiny_model(**changes: Any) -> GPT:
    torch.manual_seed(1)
    return GPT(tiny_config(**changes)).eval()


def save(path: Path, model: GPT, **changes: Any) -> str:
    values: dict[str, Any] = {
        "model_config": model.config,
        "state_dict": model.state_dict(),
        "tokenizer": TOKENIZER,
        "provenance": {"step": 7, "validation_loss": 1.5},
        **changes,
    }
    return save_checkpoint(path, **values)


@pytest.mark.parametrize("variant", [{}, OURS])
def test_a_loaded_model_computes_the_same_logits_bit_for_bit(tmp_path: Path, variant: dict[str, Any]) -> None:
    model = tiny_model(**variant)
    save(tmp_path / "a.pt", model)
    loaded = load_checkpoint(tmp_path / "a.pt").build_model()
    token_ids = torch.randint(0, 31, (2, 8))
    assert torch.equal(loaded(token_ids), model(token_ids))
    assert not loaded.training
    assert loaded.config == model.config


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("variant", [{}, OURS])
def test_plain_pytorch_opens_the_file(tmp_path: Path, variant: dict[str, Any], mmap: bool) -> None:
    model = tiny_model(**variant)
    save(tmp_path / "a.pt", model)
    state_dict = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)["state_dict"]
    other = GPT(tiny_config(**variant)).eval()
    other.load_state_dict(state_dict)
    assert all(torch.equal(state_dict[name], weight) for name, weight in model.state_dict().items())


EVERYTHING: dict[str, Any] = {
    "numbers": [0, -1, 255, 2**31, -(2**31) - 1, 2**80, -(2**80), 0.1, -0.0, 1e-320, float("inf")],
    "texts": ["", "é", "故事", "\x00", "a\udc80", "$tensor"],
    "logic": [None, True, False],
    "nested": {"$tensor": 1, "a": {"$items": []}, "": {3: {"x": [[[]]]}, -4: {}}},
    "tensors": [
        torch.arange(6, dtype=torch.float64).reshape(2, 3),
        torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
        torch.tensor(True),
        torch.tensor(2**62),
        torch.empty(0, 3),
        torch.arange(9, dtype=torch.uint8)[2::3],
        torch.tensor([float("nan"), -0.0], dtype=torch.float16),
    ],
}


def assert_identical(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_identical(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert bytes(one.reshape(-1).view(torch.uint8)) == bytes(other.reshape(-1).view(torch.uint8))
    else:
        assert repr(one) == repr(other)  # tells −0.0 from 0.0


def test_every_kind_of_value_survives_in_ours_and_in_plain_pytorch(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model(), training_state=EVERYTHING)
    ours = load_checkpoint(tmp_path / "a.pt").training_state
    plain = torch.load(tmp_path / "a.pt", weights_only=True)["training_state"]
    assert_identical(EVERYTHING, ours)
    assert_identical(EVERYTHING, plain)


def test_an_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def train(model: GPT, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            token_ids = torch.full((1, 8), step % 31)
            model.loss(token_ids, token_ids).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    save(tmp_path / "a.pt", model, training_state={"optimizer": optimizer.state_dict()})
    train(model, optimizer, 3)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    resumed = checkpoint.build_model()
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=0.5)
    assert checkpoint.training_state is not None
    resumed_optimizer.load_state_dict(checkpoint.training_state["optimizer"])
    train(resumed, resumed_optimizer, 3)
    assert all(map(torch.equal, model.state_dict().values(), resumed.state_dict().values()))


def test_a_tied_head_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    tied, untied = tiny_model(vocab_size=3000), tiny_model(vocab_size=3000, tied_head=False)
    save(tmp_path / "tied.pt", tied)
    save(tmp_path / "untied.pt", untied)
    saved_bytes = (tmp_path / "untied.pt").stat().st_size - (tmp_path / "tied.pt").stat().st_size
    assert saved_bytes >= 3000 * 8 * 4
    loaded = load_checkpoint(tmp_path / "tied.pt").build_model()
    assert loaded.head.weight is loaded.token_embedding.weight


def test_a_tied_head_that_was_copied_on_the_way_is_tied_again(tmp_path: Path) -> None:
    model = tiny_model()
    copied = {name: weight.clone() for name, weight in model.state_dict().items()}
    save(tmp_path / "a.pt", model, state_dict=copied)
    loaded = load_checkpoint(tmp_path / "a.pt").build_model()
    assert loaded.head.weight is loaded.token_embedding.weight


def test_a_tied_weight_that_is_not_a_number_can_still_be_saved(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    save(tmp_path / "a.pt", model)
    assert load_checkpoint(tmp_path / "a.pt").state_dict["head.weight"][0, 0].isnan()


def test_a_square_matrix_and_its_transpose_stay_different(tmp_path: Path) -> None:
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    save(tmp_path / "a.pt", tiny_model(), training_state={"matrix": matrix, "transpose": matrix.t()})
    state = load_checkpoint(tmp_path / "a.pt").training_state
    assert state is not None
    assert state["matrix"].tolist() == [[1, 2], [3, 4]]
    assert state["transpose"].tolist() == [[1, 3], [2, 4]]


def test_names_lose_the_prefix_of_a_compiled_model(tmp_path: Path) -> None:
    model = tiny_model()
    prefixed = {f"_orig_mod.{name}": weight for name, weight in model.state_dict().items()}
    save(tmp_path / "a.pt", model, state_dict=prefixed)
    assert list(load_checkpoint(tmp_path / "a.pt").state_dict) == list(model.state_dict())


def test_building_a_model_draws_no_random_numbers(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model())
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "a.pt").build_model()
    assert torch.equal(before, torch.get_rng_state())


def test_the_hash_is_sha256_of_all_but_the_last_71_bytes(tmp_path: Path) -> None:
    import hashlib

    returned = save(tmp_path / "a.pt", tiny_model())
    data = (tmp_path / "a.pt").read_bytes()
    assert data[-71:].decode() == "sha256:" + hashlib.sha256(data[:-71]).hexdigest()
    assert returned == verify_checkpoint(tmp_path / "a.pt") == data[-64:].decode()


def test_the_file_is_a_sound_zip_whose_tensors_are_aligned(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model(**OURS), training_state=EVERYTHING)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        card = json.loads(archive.read("checkpoint/card.json"))
    assert card["tensors"]
    assert all(entry["offset"] % 64 == 0 for entry in card["tensors"])


def test_the_card_is_read_without_torch(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model())
    program = (
        "import sys, json; from pathlib import Path; from model.checkpoint import read_card;"
        "card = read_card(Path(sys.argv[1])); assert 'torch' not in sys.modules; print(json.dumps(card))"
    )
    root = Path(checkpoints.__file__).parent.parent
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.pt")], cwd=root, capture_output=True, check=True
    ).stdout
    card = json.loads(output)
    assert card == read_card(tmp_path / "a.pt")
    assert card["parameters"] == sum(weight.numel() for weight in tiny_model().parameters())
    assert card["model_config"]["n_embd"] == 8
    assert card["provenance"] == {"step": 7, "validation_loss": 1.5}
    assert card["tokenizer"] == {"name": "char", "vocab_size": 31}
    assert card["file_bytes"] == (tmp_path / "a.pt").stat().st_size


@pytest.mark.parametrize("value", [b"bytes", {1.5: 2}, {(1,): 2}, object(), {1, 2}, 1j, torch.tensor(1j), Path("x")])
def test_what_is_no_plain_data_is_refused_before_anything_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="checkpoint"):
        save(tmp_path / "a.pt", tiny_model(), provenance={"value": value})
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    broken: list[dict[str, Any]] = [{"state_dict": {}}, {"model_config": tiny_config(n_embd=16)}, {"tokenizer": {}}]
    for changes in broken:
        with pytest.raises(CheckpointError, match="contradicts itself"):
            save(tmp_path / "a.pt", tiny_model(), **changes)
    assert list(tmp_path.iterdir()) == []


def test_saving_and_loading_need_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=300_000)  # 9.6 MB
    tracemalloc.start()
    try:
        save(tmp_path / "a.pt", model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6


def test_paths_may_be_long_strange_or_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ä b\n故事.pt", "x" * 252 + ".pt", "-rf.pt"):
        save(Path(name), tiny_model())
        assert load_checkpoint(Path(name)).provenance["step"] == 7
    Path("link.pt").symlink_to("-rf.pt")
    assert load_checkpoint(Path("link.pt")).provenance["step"] == 7


def test_a_kind_that_is_no_language_model_builds_none(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model(), kind="discriminator", state_dict={"weight": torch.zeros(2)})
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.kind == "discriminator"
    with pytest.raises(CheckpointError, match="holds a discriminator"):
        loaded.build_model()


# ---- on the disk -------------------------------------------------------------------------------------------------


def test_a_file_is_synced_and_read_back_before_it_is_renamed_and_its_folder_synced_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        operation = getattr(durable_files, name)

        def record(*arguments: Any) -> Any:
            done.append(name)
            return operation(*arguments)

        return record

    for name in ("create", "write", "sync", "open_to_read", "read_into", "rename", "sync_folder"):
        monkeypatch.setattr(durable_files, name, recorded(name))
    save(tmp_path / "a.pt", tiny_model())
    in_order = [name for name, _ in itertools.groupby(done)]
    assert in_order == ["create", "write", "sync", "open_to_read", "read_into", "rename", "sync_folder"]


@pytest.mark.parametrize("damage", ["one bit", "another checkpoint"])
def test_what_is_not_read_back_as_it_was_written_takes_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    save(tmp_path / "a.pt", tiny_model())
    before = (tmp_path / "a.pt").read_bytes()
    open_to_read = durable_files.open_to_read

    def open_damaged(path: Path) -> io.FileIO:
        if damage == "one bit":
            flip_a_bit(path, 5000)
        else:
            path.write_bytes(before)
        return open_to_read(path)

    monkeypatch.setattr(durable_files, "open_to_read", open_damaged)
    with pytest.raises(StorageError, match=r"cannot save .*a\.pt: what was read back is not what was written"):
        save(tmp_path / "a.pt", tiny_model(), provenance={"step": 8})
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


# ---- the newest run ----------------------------------------------------------------------------------------------


def test_the_newest_run_is_the_one_saved_last_whatever_the_clock_of_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for saved_at, run in ((3000.0, "a"), (5000.0, "b"), (4000.0, "c")):
        (tmp_path / run).mkdir()
        monkeypatch.setattr("time.time", lambda saved_at=saved_at: saved_at)
        save(tmp_path / run / "best.pt", tiny_model())
        os.utime(tmp_path / run / "best.pt", (0, 9000 - saved_at))
    (tmp_path / "README.md").write_text("not a run")
    assert newest_run_checkpoint(tmp_path) == tmp_path / "b" / "best.pt"


def test_without_best_the_newest_step_is_taken_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for step in (100, 9, 1_000_000, 20):
        save(tmp_path / "a" / f"step-{step:06d}.pt", tiny_model())
    assert newest_run_checkpoint(tmp_path) == tmp_path / "a" / "step-1000000.pt"


def test_a_damaged_best_costs_a_warning_and_the_next_good_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    for name in ("best.pt", "step-000001.pt", "step-000002.pt"):
        save(tmp_path / "a" / name, tiny_model())
    for name in ("best.pt", "step-000002.pt"):
        flip_a_bit(tmp_path / "a" / name, 5000)
    assert newest_run_checkpoint(tmp_path) == tmp_path / "a" / "step-000001.pt"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert "best.pt is damaged" in warnings[0]


def test_no_run_and_only_damaged_runs_say_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint under .*; train a model first: python train.py"):
        newest_run_checkpoint(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    save(tmp_path / "a" / "best.pt", tiny_model())
    flip_a_bit(tmp_path / "a" / "best.pt", 5000)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint \(1 damaged\)"):
        newest_run_checkpoint(tmp_path)


def flip_a_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_loading_imports_neither_the_compiler_nor_sympy_which_take_seconds(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model(positions="rotary"))
    program = (
        "import sys; from pathlib import Path; from model.checkpoint import load_checkpoint;"
        "load_checkpoint(Path(sys.argv[1])).build_model(); assert not {'torch._dynamo', 'sympy'} & {*sys.modules}"
    )
    root = Path(checkpoints.__file__).parent.parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.pt")], cwd=root, check=True)


# ---- old formats load for ever -----------------------------------------------------------------------------------


def numbered(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that need no random numbers: the k-th of the tensors counts k, k + 1/64, k + 2/64, …"""
    return {
        name: (k + torch.arange(weight.numel()) / 64).view(weight.shape)
        for k, (name, weight) in enumerate(state_dict.items())
    }


def test_format_1_loads_for_ever() -> None:
    """`format-1.pt` was written by `save_checkpoint` when format 1 was new, from exactly the values compared here."""
    path = FIXTURES / "format-1.pt"
    assert path.stat().st_size < 50_000
    loaded = load_checkpoint(path)
    config = tiny_config(tied_head=False, positions="rotary", bigram_rows=16)
    assert loaded.model_config == config
    expected = numbered(GPT(config).state_dict())
    assert list(loaded.state_dict) == list(expected)
    assert all(torch.equal(loaded.state_dict[name], weight) for name, weight in expected.items())
    assert loaded.tokenizer == TOKENIZER
    assert loaded.provenance == {"step": 7, "corpus": "故事", "best_validation": {"loss": 1.5}}
    assert_identical(loaded.training_state, EVERYTHING)
    assert read_card(path)["format_version"] == 1
    logits = loaded.build_model()(torch.arange(8)[None])
    assert logits.shape == (1, 8, 31)
    assert bool(logits.isfinite().all())
