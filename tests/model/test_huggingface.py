"""Import and export against transformers itself, on tiny random models of both families."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from command_line import UserError
from model.config import PRESETS, ModelConfig, preset_config
from model.gpt import GPT
from model.huggingface import export_model, import_model
from model.kv_cache import KVCache
from model.layouts.registry import why_not_exportable
from model.weight_files import MAX_JSON_BYTES, WeightsError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

LOGITS_TOLERANCE = 1e-4
N_DRAWN = 12
FAMILIES = ("gpt2", "llama")
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much when the machine is busy."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def drawn_config(family: str, seed: int) -> Any:
    """A random tiny config of transformers: heads, groups, widths, eps, theta, tied or not, bias or not."""
    draw = random.Random(seed)
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    if family == "gpt2":
        n_head = draw.choice([1, 2, 3, 5])
        return transformers.GPT2Config(
            vocab_size=draw.randint(50, 150),
            n_positions=256,
            n_embd=n_head * draw.choice([4, 8, 10]),
            n_layer=draw.randint(1, 3),
            n_head=n_head,
            n_inner=draw.choice([None, 17, 40]),
            activation_function=draw.choice(["gelu_new", "gelu", "gelu_pytorch_tanh"]),
            layer_norm_epsilon=draw.choice([1e-5, 1e-6, 1e-3]),
            tie_word_embeddings=draw.random() < 0.5,
            resid_pdrop=0.0,
            **special,
        )
    n_kv_head = draw.choice([1, 2, 3])
    n_head = n_kv_head * draw.choice([1, 2, 3])
    return transformers.LlamaConfig(
        vocab_size=draw.randint(50, 150),
        max_position_embeddings=256,
        hidden_size=n_head * draw.choice([4, 8, 16]),
        head_dim=draw.choice([None, 6, 16]),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=n_head,
        num_key_value_heads=n_kv_head,
        intermediate_size=draw.randint(10, 60),
        rms_norm_eps=draw.choice([1e-5, 1e-6, 1e-3]),
        tie_word_embeddings=draw.random() < 0.5,
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
        rope_parameters={"rope_theta": draw.choice([10_000.0, 500.0, 500_000.0]), **draw.choice(ROPES)},
        **special,
    )


def random_twin(config: Any, seed: int = 0) -> Any:
    """A model of transformers in which every tensor is random, biases and norms too, and large enough to matter."""
    torch.manual_seed(seed)
    twin = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 2 else 0.1)
            if "ln_" in name or "norm" in name:
                parameter.add_(1.0)
    return twin


def saved_twin(family: str, seed: int, folder: Path, **save: Any) -> Any:
    twin = random_twin(drawn_config(family, seed), seed)
    twin.save_pretrained(folder, **save)
    return twin


def resolved(config: ModelConfig) -> ModelConfig:
    """The same config with its derived widths spelled out."""
    return dataclasses.replace(config, n_feed_forward=config.feed_forward_width, head_width=config.channels_per_head)


def token_ids_for(model: GPT, n_positions: int = 40, n_rows: int = 2) -> Tensor:
    return torch.randint(model.config.vocab_size, (n_rows, n_positions), generator=torch.Generator().manual_seed(1))


def greedy(model: GPT, prompt: Tensor, n_new: int) -> list[int]:
    cache = KVCache(model.config, 1)
    token_ids, new = prompt, []
    with torch.inference_mode():
        for _ in range(n_new):
            logits = model.logits(model.hidden_states(token_ids, cache)[:, -1])
            token_ids = logits.argmax(dim=-1, keepdim=True)
            new.append(int(token_ids))
    return new


# ---- in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(N_DRAWN))
@pytest.mark.parametrize("family", FAMILIES)
def test_imported_logits_loss_and_gradients_equal_transformers(family: str, seed: int, tmp_path: Path) -> None:
    twin = saved_twin(family, seed, tmp_path)
    model = import_model(tmp_path)
    token_ids = token_ids_for(model)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), twin(inputs).logits, rtol=0, atol=LOGITS_TOLERANCE)

    loss, twin_loss = model.loss(inputs, targets), twin(token_ids, labels=token_ids).loss
    torch.testing.assert_close(loss, twin_loss, rtol=1e-5, atol=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    twin_loss.backward()
    for ours, theirs in ((model.token_embedding, twin.get_input_embeddings()), (model.head, twin.lm_head)):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-5)
    total = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    twin_total = sum(float(p.grad.double().square().sum()) for p in twin.parameters())
    assert total == pytest.approx(twin_total, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_equals_that_of_transformers(family: str, tmp_path: Path) -> None:
    twin = saved_twin(family, 3, tmp_path)
    model = import_model(tmp_path)
    token_ids = token_ids_for(model)
    model.loss(token_ids[:, :-1], token_ids[:, 1:]).backward()  # type: ignore[no-untyped-call]
    twin(token_ids, labels=token_ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    if model.config.tied_head:
        gradients["head.weight"] = gradients["token_embedding.weight"]
    folder = tmp_path / "gradients"
    folder.mkdir()
    export_model(model.config, gradients, folder, end_of_text=0)  # type: ignore[arg-type]
    exported = safetensors_torch.load_file(folder / "model.safetensors")
    theirs = {name: parameter.grad for name, parameter in twin.named_parameters()}
    assert exported.keys() == theirs.keys()
    for name, gradient in exported.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_200_greedy_tokens_with_a_cache_equal_transformers(family: str, seed: int, tmp_path: Path) -> None:
    twin = saved_twin(family, seed, tmp_path)
    model = import_model(tmp_path)
    prompt = token_ids_for(model, n_positions=5, n_rows=1)
    twin.generation_config.eos_token_id = None
    theirs = twin.generate(prompt, max_new_tokens=200, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert greedy(model, prompt, 200) == theirs[0, 5:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_safetensors_equal_a_single_file(family: str, tmp_path: Path) -> None:
    saved_twin(family, 1, tmp_path / "one")
    saved_twin(family, 1, tmp_path / "many", max_shard_size="2KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for (name, one), many in zip(
        import_model(tmp_path / "one").state_dict().items(),
        import_model(tmp_path / "many").state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, many), name


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bin_files_equal_safetensors(family: str, new_format: bool, tmp_path: Path) -> None:
    twin = saved_twin(family, 2, tmp_path)
    expected = import_model(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    state = {name: tensor for name, tensor in twin.state_dict().items() if name != "lm_head.weight"}
    if not twin.config.tie_word_embeddings:
        state["lm_head.weight"] = twin.lm_head.weight
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    for name, tensor in import_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_openai_names_without_prefix_and_with_causal_masks_are_read(tmp_path: Path) -> None:
    """The weights that OpenAI's GPT-2 is distributed with: no `transformer.`, and a mask in every layer."""
    saved_twin("gpt2", 1, tmp_path)
    expected = import_model(tmp_path)
    weights = safetensors_torch.load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    for layer in range(expected.config.n_layer):
        bare[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    safetensors_torch.save_file(bare, tmp_path / "model.safetensors")
    for name, tensor in import_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_weights_become_the_same_numbers_in_fp32(family: str, tmp_path: Path) -> None:
    twin = saved_twin(family, 1, tmp_path)
    twin.to(torch.bfloat16).save_pretrained(tmp_path)
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = import_model(tmp_path)
    token_ids = token_ids_for(model)
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids), twin(token_ids).logits, rtol=0, atol=LOGITS_TOLERANCE)


def test_older_spelling_of_rope_scaling_is_read(tmp_path: Path) -> None:
    """Configs of transformers 4: `rope_theta` and `rope_scaling` at the top, `type` for `rope_type`."""
    twin = saved_twin("llama", 5, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = {**ROPES[2], "rope_theta": 777.0}
    twin_config = transformers.LlamaConfig(**{**config, "rope_parameters": rope})
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    scaling = {("type" if key == "rope_type" else key): value for key, value in ROPES[2].items()}
    (tmp_path / "config.json").write_text(json.dumps({**old, "rope_theta": 777.0, "rope_scaling": scaling}))
    model = import_model(tmp_path)
    expected = transformers.LlamaForCausalLM(twin_config).eval()
    expected.load_state_dict(twin.state_dict())
    token_ids = token_ids_for(model, n_positions=100)
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids), expected(token_ids).logits, rtol=0, atol=LOGITS_TOLERANCE)


def test_padded_vocabulary_keeps_its_rows(tmp_path: Path) -> None:
    """The model's vocabulary is what its embedding holds, however many tokens a tokenizer names."""
    config = drawn_config("gpt2", 0)
    config.vocab_size = 128
    twin = random_twin(config)
    twin.save_pretrained(tmp_path)
    assert torch.equal(import_model(tmp_path).token_embedding.weight, twin.transformer.wte.weight)


# ---- out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(N_DRAWN))
@pytest.mark.parametrize("family", FAMILIES)
def test_exported_logits_equal_ours(family: str, seed: int, tmp_path: Path) -> None:
    saved_twin(family, 100 + seed, tmp_path / "first")
    model = import_model(tmp_path / "first")
    (tmp_path / "out").mkdir()
    export_model(model.config, model.state_dict(), tmp_path / "out", end_of_text=3)
    twin, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    token_ids = token_ids_for(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(token_ids).logits, model(token_ids), rtol=0, atol=LOGITS_TOLERANCE)
    assert resolved(import_model(tmp_path / "out").config) == resolved(model.config)
    assert twin.generation_config.eos_token_id == 3


@pytest.mark.parametrize("preset", ["nano-llama", "gpt2"])
@pytest.mark.parametrize("bias", [True, False])
def test_our_own_models_open_in_transformers(preset: str, bias: bool, tmp_path: Path) -> None:
    small = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 64, "vocab_size": 70, "bias": bias}
    torch.manual_seed(0)
    model = GPT(preset_config(preset, **small)).eval()
    export_model(model.config, model.state_dict(), tmp_path, end_of_text=69)
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    token_ids = token_ids_for(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(token_ids).logits, model(token_ids), rtol=0, atol=LOGITS_TOLERANCE)


def test_bf16_export_rounds_once(tmp_path: Path) -> None:
    model = GPT(preset_config("nano-llama", n_layer=1, n_embd=16, vocab_size=40))
    export_model(model.config, model.state_dict(), tmp_path, end_of_text=0, dtype="bf16")
    for name, tensor in import_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float()), name


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"feed_forward": "relu_squared"}, "feed_forward relu_squared"),
        ({"qk_norm": True}, "qk_norm"),
        ({"bigram_rows": 64}, "n-gram embeddings"),
        ({"normalization": "layernorm"}, "normalization layernorm"),
        ({"positions": "learned", "normalization": "layernorm", "feed_forward": "gelu", "n_kv_head": 1}, "n_kv_head"),
        ({"positions": "learned", "normalization": "layernorm", "feed_forward": "gelu", "head_width": 4}, "head_width"),
    ],
)
def test_parts_without_counterpart_are_refused_by_name(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    config = preset_config("nano-llama", vocab_size=40, n_layer=1, n_embd=16, **change)
    assert len(why_not_exportable(config)) == 1
    with pytest.raises(UserError, match=rf"cannot be exported: {part}.*--preset mini-llama"):
        export_model(config, GPT(config).state_dict(), tmp_path, end_of_text=0)
    assert not list(tmp_path.iterdir())


def test_which_presets_can_be_exported() -> None:
    exportable = {name for name in PRESETS if not why_not_exportable(preset_config(name, vocab_size=300))}
    assert exportable == {name for name in PRESETS if "llama" in name or name.startswith("gpt2")}


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt2", {"model_type": "gpt_neo"}, "model_type must be one of gpt2, llama, but is 'gpt_neo'"),
        ("gpt2", {"model_type": None}, "model_type must be one of"),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}, "architectures must be"),
        ("gpt2", {"activation_function": "relu"}, "activation_function must be one of gelu_new"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention must be False"),
        ("gpt2", {"attention_sinks": 4}, "field 'attention_sinks'"),
        ("gpt2", {"n_ctx": 512}, "contradicts itself: n_ctx is 512, n_positions is 256"),
        ("gpt2", {"n_layer": "two"}, "n_layer must be a whole number, but is 'two'"),
        ("gpt2", {"n_layer": True}, "n_layer must be a whole number, but is True"),
        ("gpt2", {"n_head": 7}, "must be a multiple of"),
        ("gpt2", {"vocab_size": None}, "misses the field 'vocab_size'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act must be one of silu"),
        ("llama", {"sliding_window": 128}, "sliding_window must be None"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config must be None"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be one of default"),
        ("llama", {"rope_parameters": {"rope_type": "default", "beta": 2.0}}, "field 'beta'"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0},
            "rope_parameters differs from rope_theta",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 9.0}},
            "rope_parameters differs from rope_theta or rope_scaling",
        ),
    ],
)
def test_config_fields_that_change_the_model_are_refused_by_name(
    family: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved_twin(family, 1, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        import_model(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    saved_twin("llama", 4, tmp_path)
    return tmp_path


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in safetensors_torch.load_file(path).items()}
    for name, tensor in changes.items():
        if tensor is None:
            del weights[name]
        else:
            weights[name] = tensor
    safetensors_torch.save_file(weights, path)


def test_missing_tensor_is_named(llama: Path) -> None:
    edit_weights(llama, **{"model.layers.0.self_attn.v_proj.weight": None})
    name = r"model\.layers\.0\.self_attn\.v_proj\.weight"
    with pytest.raises(WeightsError, match=rf"model\.safetensors misses the tensor {name}"):
        import_model(llama)


def test_extra_tensor_is_named(llama: Path) -> None:
    edit_weights(llama, **{"model.layers.0.self_attn.q_norm.weight": torch.ones(4)})
    name = r"model\.layers\.0\.self_attn\.q_norm\.weight"
    with pytest.raises(WeightsError, match=rf"model\.safetensors holds the tensor {name}, which a llama"):
        import_model(llama)


def test_misshaped_tensor_is_named_with_both_shapes(llama: Path) -> None:
    edit_weights(llama, **{"model.norm.weight": torch.ones(5)})
    width = json.loads((llama / "config.json").read_text())["hidden_size"]
    with pytest.raises(WeightsError, match=rf"model\.norm\.weight has shape \(5,\), but \({width},\) is needed"):
        import_model(llama)


def test_transposed_tensor_is_refused_though_it_has_as_many_numbers(llama: Path) -> None:
    weights = safetensors_torch.load_file(llama / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    edit_weights(llama, **{name: weights[name].T.contiguous()})
    with pytest.raises(WeightsError, match=r"down_proj\.weight has shape"):
        import_model(llama)


def test_integer_tensor_is_refused(llama: Path) -> None:
    width = json.loads((llama / "config.json").read_text())["hidden_size"]
    edit_weights(llama, **{"model.norm.weight": torch.ones(width, dtype=torch.int8)})
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is torch\.int8"):
        import_model(llama)


def test_head_that_differs_from_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    config = drawn_config("gpt2", 0)
    config.tie_word_embeddings = True
    random_twin(config).save_pretrained(tmp_path)
    shape = (config.vocab_size, config.n_embd)
    embedding = safetensors_torch.load_file(tmp_path / "model.safetensors")["transformer.wte.weight"].clone()
    edit_weights(tmp_path, **{"lm_head.weight": embedding})
    import_model(tmp_path)
    edit_weights(tmp_path, **{"lm_head.weight": torch.zeros(shape)})
    with pytest.raises(WeightsError, match=r"model\.safetensors contradicts config\.json, .* lm_head\.weight differs"):
        import_model(tmp_path)


def test_truncated_safetensors_is_named_wherever_it_is_cut(llama: Path) -> None:
    path = llama / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or cut short"):
            import_model(llama)
    path.write_bytes(whole + b"more")
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        import_model(llama)


def test_missing_shard_is_named_with_a_tensor_of_it(tmp_path: Path) -> None:
    saved_twin("llama", 1, tmp_path, max_shard_size="2KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=rf"{shard.name} is missing; .*index.json says that it holds the tensor \S+"):
        import_model(tmp_path)


def test_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    saved_twin("llama", 1, tmp_path, max_shard_size="2KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    with pytest.raises(WeightsError, match=rf"{second.name} misses the tensor \S+, which the folder's index promises"):
        import_model(tmp_path)


def test_index_cannot_reach_out_of_the_folder(tmp_path: Path) -> None:
    saved_twin("llama", 1, tmp_path, max_shard_size="2KB")
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = "../model.safetensors"
    index.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"'\.\./model\.safetensors', which is no file of the folder"):
        import_model(tmp_path)


class Exploding:
    """A pickle that would run code if it were trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, ("a pickle ran code",))


def test_bin_file_that_holds_code_is_refused(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Exploding()}, llama / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is damaged, or holds more than tensors"):
        import_model(llama)
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x02nonsense")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is damaged"):
        import_model(llama)


def test_folder_without_weights_or_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is no folder of a Hugging Face model: it holds no config\.json"):
        import_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        import_model(tmp_path)
    drawn_config("gpt2", 0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(WeightsError, match=r"there is no model\.safetensors or pytorch_model\.bin"):
        import_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_larger_than_any_such_file_is_not_read(name: str, tmp_path: Path) -> None:
    saved_twin("llama", 1, tmp_path, max_shard_size="2KB")
    with (tmp_path / name).open("r+b") as file:
        file.truncate(MAX_JSON_BYTES + 1)  # a hole, which takes no space on the disk
    with pytest.raises(WeightsError, match=rf"{name} is larger than 64 MB"):
        import_model(tmp_path)


def test_huge_sizes_in_a_config_ask_for_no_memory(tmp_path: Path) -> None:
    saved_twin("gpt2", 1, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 10**12}))
    with pytest.raises(WeightsError, match=r"wte\.weight has shape"):
        import_model(tmp_path)


# ---- full size ---------------------------------------------------------------------------------------------------

MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from model.huggingface import import_model

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

torch.zeros(1) + 1
before, peak, done = anonymous_bytes(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous_bytes())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
model = import_model(sys.argv[1])
seconds = time.perf_counter() - start
done = True
watcher.join()
weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
print(seconds, (peak - before) / weight_bytes, weight_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
def test_full_size_gpt2_imports_within_twice_its_weights(tmp_path: Path) -> None:
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    twin.save_pretrained(tmp_path)
    expected = float(twin.transformer.h[11].mlp.c_proj.weight.detach().double().sum())
    del twin
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    seconds, share, weight_bytes = map(float, result.stdout.split())
    print(f"GPT-2 124M: {seconds:.2f} s, peak {share:.2f} × its {weight_bytes / 1e6:.0f} MB of weights")
    assert weight_bytes == 4 * 124_439_808
    assert share < 2.2
    down = import_model(tmp_path).blocks[11].feed_forward.down  # type: ignore[union-attr]
    assert float(down.weight.detach().double().sum()) == pytest.approx(expected)  # type: ignore[union-attr, operator]


def test_config_of_rope_scaling_is_checked() -> None:
    with pytest.raises(UserError, match="--rope-scaling-factor"):
        ModelConfig(vocab_size=10, rope_scaling_factor=2.0)
    with pytest.raises(UserError, match="--rope-low-frequency-factor"):
        ModelConfig(vocab_size=10, positions="rotary", rope_scaling="llama3", rope_low_frequency_factor=4.0)
