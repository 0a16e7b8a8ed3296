"""GGUF files: read back number for number, and run by llama.cpp to the same greedy tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from command_line import UserError
from data.tokenizers.base import Tokenizer
from data.tokenizers.gguf_vocabulary import gguf_vocabulary
from data.tokenizers.registry import build_tokenizer
from model.config import ModelConfig, preset_config
from model.gguf_export import export_gguf
from model.gpt import GPT
from model.kv_cache import KVCache

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

TALES = (Path(__file__).parents[2] / "data/tales/en/bright.txt").read_text(encoding="utf-8")[:40_000]
PROMPT = "Once upon a time there was a little fox"
SMALL = {"context_length": 256, "n_layer": 2, "n_embd": 64, "n_head": 4}
LLAMA3 = {"rope_scaling": "llama3", "rope_scaling_factor": 8.0, "rope_original_context": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "gpt2-untied-without-bias": {"preset": "gpt2", "tied_head": False, "bias": False},
    "llama": {"preset": "nano-llama"},
    "llama-grouped-tied-biased": {"preset": "nano-llama", "n_kv_head": 2, "tied_head": True, "bias": True},
    "llama-wide-heads": {"preset": "nano-llama", "head_width": 32, "rope_theta": 500.0},
    "llama-linear": {"preset": "nano-llama", "rope_scaling": "linear", "rope_scaling_factor": 4.0},
    "llama3": {"preset": "nano-llama", "n_kv_head": 1, **LLAMA3},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("bpe:500", lambda: iter([TALES]), len(TALES))


def random_model(vocab_size: int, preset: str, **overrides: Any) -> GPT:
    """A model whose every weight is random and large enough that each part matters."""
    torch.manual_seed(0)
    model = GPT(preset_config(preset, vocab_size=vocab_size, **{**SMALL, **overrides})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15)
            if "norm.weight" in name:
                parameter.add_(1.0)
    return model


def export(model: GPT, path: Path, tokenizer: Tokenizer, dtype: str = "f32") -> None:
    vocabulary = gguf_vocabulary(tokenizer)
    export_gguf(model.config, model.state_dict(), path, vocabulary=vocabulary, dtype=dtype, name="test")


def greedy(model: GPT, prompt: list[int], n_new: int) -> tuple[list[int], Tensor]:
    """New tokens, and the logits of the last position of the prompt."""
    cache, token_ids, new, first = KVCache(model.config, 1), torch.tensor([prompt]), [], None
    with torch.inference_mode():
        for _ in range(n_new):
            logits = model.logits(model.hidden_states(token_ids, cache)[:, -1])
            first = logits[0] if first is None else first
            token_ids = logits.argmax(dim=-1, keepdim=True)
            new.append(int(token_ids))
    assert first is not None
    return new, first


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_draws_the_same_greedy_tokens(variant: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = random_model(tokenizer.vocab_size, **VARIANTS[variant])
    export(model, tmp_path / "model.gguf", tokenizer)
    # Keys and values in f32 (type 0): llama.cpp would otherwise keep them in 16 bits.
    settings = {"n_ctx": 256, "n_threads": 1, "logits_all": True, "verbose": False, "type_k": 0, "type_v": 0}
    theirs = llama_cpp.Llama(str(tmp_path / "model.gguf"), **settings)
    try:
        prompt = theirs.tokenize(PROMPT.encode())
        assert prompt == tokenizer.encode(PROMPT)
        tokens, logits = greedy(model, prompt, 200)
        stream = theirs.generate(prompt, temp=0.0)
        assert [next(stream) for _ in tokens] == tokens
        # llama.cpp looks up GPT-2's GELU in a table of 16-bit numbers.
        atol = 2e-3 if "gpt2" in variant else 1e-4
        np.testing.assert_allclose(theirs.scores[len(prompt) - 1], logits, rtol=0, atol=atol)
    finally:
        theirs.close()


def fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def turned_back(weight: np.ndarray[Any, Any], n_heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's interleaved channels of queries or keys in half-split order: 0 2 4 … 1 3 5 …"""
    heads = np.split(weight, n_heads)
    return np.concatenate([np.concatenate((head[0::2], head[1::2])) for head in heads])


def test_every_number_of_a_llama_is_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(tokenizer.vocab_size, "nano-llama", n_kv_head=2, bias=True)
    export(model, tmp_path / "model.gguf", tokenizer)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    same = {"token_embd": "token_embedding", "output": "head", "output_norm": "final_norm"}
    for layer in range(model.config.n_layer):
        for theirs, name in (
            ("attn_output", "attention.projection"),
            ("attn_norm", "attention_norm"),
            ("ffn_norm", "feed_forward_norm"),
            *((f"ffn_{part}", f"feed_forward.{part}") for part in ("gate", "up", "down")),
        ):
            same[f"blk.{layer}.{theirs}"] = f"blocks.{layer}.{name}"
        for kind in ("weight", "bias"):
            fused = ours[f"blocks.{layer}.attention.qkv.{kind}"]
            queries, keys, values = np.split(fused, (64, 96))
            for part, expected, n_heads in (("q", queries, 4), ("k", keys, 2)):
                exported = tensors.pop(f"blk.{layer}.attn_{part}.{kind}")
                np.testing.assert_array_equal(turned_back(exported, n_heads), expected)
            np.testing.assert_array_equal(tensors.pop(f"blk.{layer}.attn_v.{kind}"), values)
    for name, tensor in tensors.items():
        stem, kind = name.rsplit(".", 1)
        np.testing.assert_array_equal(tensor, ours[f"{same[stem]}.{kind}"], err_msg=name)
    assert len(tensors) + 6 * model.config.n_layer == len(ours) + 4 * model.config.n_layer

    metadata = fields(reader)
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == "test"
    assert metadata["llama.attention.head_count_kv"] == 2
    assert metadata["llama.context_length"] == 256
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert len(metadata["tokenizer.ggml.tokens"]) == tokenizer.vocab_size


def test_rounded_matrices_are_within_half_a_step(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(tokenizer.vocab_size, "gpt2")
    weight = model.state_dict()["blocks.1.feed_forward.up.weight"]
    read = {}
    for dtype in ("bf16", "q8_0"):
        export(model, tmp_path / f"{dtype}.gguf", tokenizer, dtype)
        reader = gguf.GGUFReader(tmp_path / f"{dtype}.gguf")
        assert fields(reader)["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"]
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        matrix = tensors["blk.1.ffn_up.weight"]
        read[dtype] = torch.tensor(gguf.dequantize(matrix.data, matrix.tensor_type))
        for name in ("blk.1.ffn_up.bias", "position_embd.weight", "output_norm.weight"):
            assert tensors[name].tensor_type == gguf.GGMLQuantizationType.F32, name
    assert torch.equal(read["bf16"], weight.bfloat16().float())
    # Blocks of 32 weights: the largest is 127 steps, the scale is rounded to fp16.
    blocks = weight.view(-1, 32)
    steps = blocks.abs().amax(dim=1, keepdim=True) / 127
    error = (read["q8_0"].view(-1, 32) - blocks).abs()
    assert (error <= steps * (0.5 + 127 * 2**-11)).all()
    assert error.max() > 0


def test_rows_that_are_no_whole_blocks_stay_in_bf16(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(tokenizer.vocab_size, "nano-llama", n_feed_forward=48)
    export(model, tmp_path / "model.gguf", tokenizer, "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "BF16"


@pytest.mark.parametrize("dtype", ["bf16", "q8_0"])
def test_llama_cpp_runs_rounded_models(dtype: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = random_model(tokenizer.vocab_size, "nano-llama")
    export(model, tmp_path / "model.gguf", tokenizer, dtype)
    theirs = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    try:
        prompt = tokenizer.encode(PROMPT)
        theirs.eval(prompt)
        _, logits = greedy(model, prompt, 1)
        difference = torch.tensor(np.array(theirs.scores[len(prompt) - 1])) - logits
        assert difference.std() < 0.05 * logits.std()
    finally:
        theirs.close()


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (preset_config("nano", vocab_size=300), "feed_forward relu_squared"),
        (ModelConfig(vocab_size=300, feed_forward="gelu", n_embd=48), "feed_forward gelu"),
    ],
)
def test_parts_that_llama_cpp_lacks_are_refused_by_name(config: ModelConfig, part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot be exported.*{part}"):
        export_gguf(config, {}, tmp_path / "model.gguf", vocabulary={})
    assert not list(tmp_path.iterdir())
