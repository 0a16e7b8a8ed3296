"""What holds for the whole model, whatever parts the config chooses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import PRESETS, ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.optimizers import build_optimizer

Build = Callable[[ModelConfig], GPT]
POSITION = 9


def random_tokens(n_rows: int, n_tokens: int, vocab_size: int = 50, seed: int = 0) -> Tensor:
    return torch.randint(0, vocab_size, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def test_the_future_has_no_influence_and_all_of_the_past_has(config: ModelConfig, build: Build) -> None:
    model = build(config)
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.dropout.register_forward_hook(keep)
    logits = model(random_tokens(2, 20))
    # A random mixture of the logits, since their plain sum could lose a direction.
    (logits[:, POSITION] * torch.randn(50, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert embedded[0].grad is not None
    influence = embedded[0].grad.abs().amax(dim=-1)  # (B, T)
    assert influence[:, POSITION + 1 :].max() == 0
    assert influence[:, : POSITION + 1].min() > 0


def test_other_tokens_in_the_future_leave_every_earlier_logit_as_it_is(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config), random_tokens(2, 20)
    changed = tokens.clone()
    changed[:, POSITION + 1 :] = (changed[:, POSITION + 1 :] + 7) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, : POSITION + 1], after[:, : POSITION + 1])
    assert not torch.allclose(before[:, POSITION + 1 :], after[:, POSITION + 1 :])


def test_rows_of_a_batch_do_not_see_each_other(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(3, 20)
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, rtol=0, atol=1e-12)


def test_loss_is_the_mean_cross_entropy_of_the_logits(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(2, 21)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(inputs, targets), expected, rtol=0, atol=1e-12)
    each = nn.functional.cross_entropy(model(inputs).mT, targets, reduction="none")
    torch.testing.assert_close(model.token_losses(inputs, targets).double(), each, rtol=1e-6, atol=1e-6)


def test_gradients_equal_those_through_all_logits(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config).double(), random_tokens(2, 21)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(model.loss(inputs, targets), parameters)
    whole = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    for name, mine, reference in zip(names, ours, torch.autograd.grad(whole, parameters), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-10, msg=name)


def test_a_tied_head_is_the_token_embedding_and_an_untied_one_is_not() -> None:
    tied = GPT(ModelConfig(vocab_size=50, n_layer=1, n_head=2, n_embd=8))
    assert tied.head.weight.data_ptr() == tied.token_embedding.weight.data_ptr()
    tied.load_state_dict({name: torch.randn_like(tensor) for name, tensor in tied.state_dict().items()})
    assert tied.head.weight is tied.token_embedding.weight
    untied = GPT(ModelConfig(vocab_size=50, n_layer=1, n_head=2, n_embd=8, tied_head=False))
    assert untied.head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()


def test_dropout_acts_only_while_training(build: Build) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
    with_dropout, without = build(ModelConfig(**sizes, dropout=0.3)), build(ModelConfig(**sizes))
    tokens = random_tokens(2, 20)
    assert torch.equal(with_dropout(tokens), without(tokens))
    with_dropout.train()
    assert not torch.allclose(with_dropout(tokens), with_dropout(tokens))
    without.train()
    assert torch.equal(without(tokens), without.eval()(tokens))


def test_more_tokens_than_the_context_are_refused(config: ModelConfig, build: Build) -> None:
    with pytest.raises(ValueError, match="25 tokens do not fit into a context of 24"):
        build(config)(random_tokens(1, 25))


def test_a_model_from_a_state_dict_computes_the_same(config: ModelConfig, build: Build) -> None:
    model, tokens = build(config), random_tokens(2, 20)
    rebuilt = GPT.from_state_dict(config, model.state_dict())
    assert torch.equal(rebuilt(tokens), model(tokens))


NAMES_OF_A_BLOCK = {
    "gpt2": (
        "attention_norm.weight attention_norm.bias attention.qkv.weight attention.qkv.bias attention.projection.weight "
        "attention.projection.bias feed_forward_norm.weight feed_forward_norm.bias feed_forward.up.weight "
        "feed_forward.up.bias feed_forward.down.weight feed_forward.down.bias"
    ),
    "mini-llama": (
        "attention_norm.weight attention.qkv.weight attention.projection.weight feed_forward_norm.weight "
        "feed_forward.gate.weight feed_forward.up.weight feed_forward.down.weight"
    ),
    "mini": (
        "attention_norm.weight attention.qkv.weight attention.projection.weight feed_forward_norm.weight "
        "feed_forward.up.weight feed_forward.down.weight"
    ),
}
NAMES_AROUND_THE_BLOCKS = {
    "gpt2": "token_embedding.weight position_embedding.weight final_norm.weight final_norm.bias head.weight",
    "mini-llama": "token_embedding.weight final_norm.weight head.weight",
    "mini": "token_embedding.weight ngram_embedding.tables.2.weight final_norm.weight head.weight",
}


@pytest.mark.parametrize("preset", NAMES_OF_A_BLOCK)
def test_state_dict_has_the_names_that_checkpoints_rely_on(preset: str) -> None:
    model = GPT(ModelConfig(**{**PRESETS[preset], "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 8}))
    model(random_tokens(1, 8))  # tables that a forward pass fills do not belong into a checkpoint
    blocks = {f"blocks.{layer}.{name}" for layer in range(2) for name in NAMES_OF_A_BLOCK[preset].split()}
    assert set(model.state_dict()) == blocks | set(NAMES_AROUND_THE_BLOCKS[preset].split())


@pytest.mark.parametrize("preset", ["gpt2", "mini-llama", "mini"])
def test_one_batch_is_learned_by_heart(preset: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "context_length": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "dropout": 0.0,
    }
    model = GPT(ModelConfig(**{**PRESETS[preset], **sizes}))
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.0))
    tokens = random_tokens(4, 17)
    tokens[:, 0] = torch.arange(4)  # what follows is certain from the first token on
    loss = torch.tensor(0.0)
    for step in range(80):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.set_learning_rate_factor(1 - step / 80)
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02
