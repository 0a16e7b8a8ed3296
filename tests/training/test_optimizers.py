"""Every parameter has the optimizer, rate and decay of its role, and the combined state is exact and plain."""

import copy
import io
from typing import Any

import pytest
import torch

from model.config import ModelConfig, preset_config
from model.gpt import GPT
from training.config import TrainConfig
from training.muon import Muon
from training.optimizers import CombinedOptimizer, build_optimizer, learning_rates, parameter_groups

SMALL: dict[str, Any] = {"vocab_size": 40, "n_layer": 2, "n_head": 4, "n_embd": 32, "context_length": 16}
CONFIGS = {
    "gpt2": preset_config("gpt2", **SMALL),
    "llama": preset_config("mini-llama", **SMALL, n_kv_head=2),
    "ours": preset_config("mini", **{**SMALL, "dropout": 0.0, "bigram_rows": 50, "trigram_rows": 50}),
}


def build(config: ModelConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(config)


def backward(model: GPT, seed: int) -> None:
    tokens = torch.randint(0, 40, (4, 17), generator=torch.Generator().manual_seed(seed))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[no-untyped-call]


def train(model: GPT, optimizer: CombinedOptimizer, seeds: range) -> None:
    for seed in seeds:
        backward(model, seed)
        optimizer.set_learning_rate_factor(1 / (seed + 1))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(config: ModelConfig, optimizer: Any) -> None:
    model = build(config)
    groups = parameter_groups(model, TrainConfig(optimizer=optimizer))
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_roles_follow_from_what_a_parameter_does(config: ModelConfig) -> None:
    model = build(config)
    roles = {name: g.role for g in parameter_groups(model, TrainConfig()) for name in g.parameters}
    for name, role in roles.items():
        if "norm" in name or name.endswith("bias"):
            assert role == "vectors", name
        elif "ngram" in name:
            assert role == "ngrams", name
        elif "embedding" in name:
            assert role == "embeddings", name
        else:
            assert role == ("head" if name == "head.weight" else "matrices"), name
    assert ("head.weight" in roles) == (not config.tied_head)


def test_only_matrices_of_the_blocks_get_muon() -> None:
    for group in parameter_groups(build(CONFIGS["ours"]), TrainConfig()):
        assert (group.optimizer == "muon") == (group.role == "matrices")


def test_every_role_has_its_decay_and_gains_have_none() -> None:
    config = TrainConfig(weight_decay=0.3, embedding_weight_decay=0.8)
    decays = {group.role: group.weight_decay for group in parameter_groups(build(CONFIGS["ours"]), config)}
    assert decays == {"matrices": 0.3, "embeddings": 0.8, "ngrams": 10.0, "head": 0.8, "vectors": 0.0}


def test_embeddings_do_not_decay_unless_asked() -> None:
    decays = {group.role: group.weight_decay for group in parameter_groups(build(CONFIGS["ours"]), TrainConfig())}
    assert decays == {"matrices": 0.1, "embeddings": 0.0, "ngrams": 0.0, "head": 0.0, "vectors": 0.0}


def test_fused_projection_is_split_into_queries_keys_and_values() -> None:
    groups = parameter_groups(build(CONFIGS["llama"]), TrainConfig())
    splits = {name: group.row_blocks for group in groups for name in group.parameters}
    assert splits["blocks.0.attention.qkv.weight"] == (32, 16, 16)  # 4 query heads, 2 shared, of 8 channels
    assert splits["blocks.0.attention.projection.weight"] == ()


def test_rates_are_those_of_the_help_text_unless_given() -> None:
    assert learning_rates(TrainConfig()) == (0.02, 0.005)
    assert learning_rates(TrainConfig(optimizer="adamw")) == (0.001, 0.001)
    assert learning_rates(TrainConfig(learning_rate=0.5, embedding_learning_rate=0.25)) == (0.5, 0.25)
    assert learning_rates(TrainConfig(optimizer="adamw", learning_rate=0.5)) == (0.5, 0.5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_adamw_equals_torch_adamw_with_groups_made_by_hand(config: ModelConfig) -> None:
    # In double precision, since the gradient of a key bias is zero but for rounding, which AdamW magnifies.
    ours, theirs = build(config).double(), build(config).double()
    train_config = TrainConfig(
        optimizer="adamw", learning_rate=0.01, weight_decay=0.2, embedding_weight_decay=0.4, beta2=0.99
    )
    optimizer = build_optimizer(ours, train_config)
    by_decay: dict[float, list[torch.Tensor]] = {0.2: [], 0.4: [], 5.0: [], 0.0: []}
    for name, parameter in theirs.named_parameters():
        decay = 0.0 if parameter.ndim < 2 else 0.2 if name.startswith("blocks.") else 5.0 if "ngram" in name else 0.4
        by_decay[decay].append(parameter)
    reference = torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items() if parameters],
        lr=0.01,
        betas=(0.9, 0.99),
        foreach=False,
    )
    for seed in range(4):
        for model in (ours, theirs):
            backward(model, seed)
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
        reference.zero_grad()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9, msg=name)


def test_muon_and_adamw_together_equal_both_built_by_hand() -> None:
    ours, theirs = build(CONFIGS["ours"]), build(CONFIGS["ours"])
    optimizer = build_optimizer(ours, TrainConfig(weight_decay=0.1))
    named = dict(theirs.named_parameters())
    qkv = [named[name] for name in named if "qkv" in name]
    matrices = [named[n] for n in named if n.startswith("blocks.") and named[n].ndim == 2 and "qkv" not in n]
    rest = [named[n] for n in named if not (n.startswith("blocks.") and named[n].ndim == 2)]
    muon_groups: list[dict[str, Any]] = [{"params": qkv, "row_blocks": [32, 32, 32]}, {"params": matrices}]
    muon = Muon(muon_groups, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(rest, lr=0.005, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for seed in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            backward(model, seed)
        optimizer.step()
        muon.step()
        adamw.step()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, named[name]), name


def test_learning_rate_factor_scales_every_peak_rate() -> None:
    model = build(CONFIGS["ours"])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig())
    backward(model, 0)
    optimizer.set_learning_rate_factor(0.0)
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    optimizer.set_learning_rate_factor(0.5)
    optimizer.step()
    # AdamW's second step with an unchanged gradient moves every weight by exactly its rate.
    moved = (model.final_norm.weight - before["final_norm.weight"]).abs()
    assert model.final_norm.weight.grad is not None
    touched = model.final_norm.weight.grad.abs() > 1e-6
    torch.testing.assert_close(moved[touched], torch.full_like(moved[touched], 0.0025), rtol=1e-2, atol=0)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_saved_state_continues_bit_for_bit_and_is_plain(optimizer: Any) -> None:
    train_config = TrainConfig(optimizer=optimizer)
    unbroken, broken = build(CONFIGS["ours"]), build(CONFIGS["ours"])
    train(unbroken, build_optimizer(unbroken, train_config), range(6))
    first = build_optimizer(broken, train_config)
    train(broken, first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build_optimizer(broken, train_config)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(broken, second, range(3, 6))
    for name, parameter in broken.named_parameters():
        assert torch.equal(parameter, unbroken.state_dict()[name]), name


def test_state_holds_only_dicts_tensors_and_a_float() -> None:
    model = build(CONFIGS["llama"])
    optimizer = build_optimizer(model, TrainConfig())
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    assert type(state.pop("learning_rate_factor")) is float
    assert set(state) == {"muon", "adamw"}
    assert {name for entries in state.values() for name in entries} == set(dict(model.named_parameters()))
    assert all(
        isinstance(x, torch.Tensor) for kind in state.values() for entry in kind.values() for x in entry.values()
    )


def test_state_before_the_first_step_loads() -> None:
    model = build(CONFIGS["gpt2"])
    empty = build_optimizer(model, TrainConfig()).state_dict()
    optimizer = build_optimizer(model, TrainConfig())
    optimizer.load_state_dict(empty)
    assert optimizer.state_dict() == empty


def test_state_of_another_model_or_optimizer_is_refused() -> None:
    model, other = build(CONFIGS["gpt2"]), build(CONFIGS["ours"])
    optimizer = build_optimizer(model, TrainConfig())
    train(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="does not fit this model"):
        build_optimizer(other, TrainConfig()).load_state_dict(state)
    with pytest.raises(ValueError, match="does not fit this model"):
        build_optimizer(model, TrainConfig(optimizer="adamw")).load_state_dict(state)


def test_frozen_parameters_are_left_out() -> None:
    model = build(CONFIGS["gpt2"])
    model.token_embedding.weight.requires_grad_(False)
    groups = parameter_groups(model, TrainConfig())
    assert "token_embedding.weight" not in {name for group in groups for name in group.parameters}
