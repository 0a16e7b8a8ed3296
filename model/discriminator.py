"""A discriminator: a small GPT whose head says which class a text will belong to, instead of which token comes next.

Trained on every prefix of labelled texts, it answers p(label | prefix) at each position, so one causal pass scores all
prefixes of a text. To score k candidate tokens behind one prefix, `CandidateView` shows them the keys and values of
the prefix, which they share: no row is copied k times. Yang & Klein 2021, "FUDGE", arxiv.org/abs/2104.05218.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoint import Checkpoint, CheckpointError
from model.config import ModelConfig
from model.gpt import GPT
from model.initialization import outlined
from model.kv_cache import KVCache
from model.next_token_head import NextTokenHead, next_token_head_like

KIND = "discriminator"
"""What a checkpoint of a discriminator calls itself."""

NO_LABEL = -1
"""The target of padding: such positions train nothing."""


class Discriminator(GPT):
    """p(label | prefix) at every position: `forward` gives class logits (B, T, L) of L labels.

    With a `CandidateView` in place of a cache, the T tokens are alternatives for one position, not a sequence. It may
    carry a `NextTokenHead`, which guesses its answers from the hidden states of one language model.
    """

    def __init__(self, config: ModelConfig, n_labels: int, next_token: NextTokenHead | None = None) -> None:
        super().__init__(dataclasses.replace(config, tied_head=False))
        self.head = nn.Linear(config.n_embd, n_labels, bias=False)
        nn.init.zeros_(self.head.weight)  # before training every label is equally probable
        self.next_token = next_token

    @property
    def n_labels(self) -> int:
        """L: labels."""
        return self.head.out_features

    @classmethod
    def from_state_dict(cls, config: ModelConfig, state_dict: Mapping[str, Tensor]) -> Discriminator:
        """The discriminator with these very tensors (not copies) as its weights, in evaluation mode."""
        with outlined():
            model = cls(config, state_dict["head.weight"].shape[0], next_token_head_like(state_dict))
        model.adopt(state_dict)
        return model

    @classmethod
    def from_language_model(cls, model: GPT, n_labels: int, dropout: float = 0.0) -> Discriminator:
        """A discriminator with a copy of a language model as its body and a fresh head, ready to be fine-tuned."""
        discriminator = cls(dataclasses.replace(model.config, dropout=dropout), n_labels)
        body = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
        discriminator.load_state_dict({**discriminator.state_dict(), **body})
        return discriminator

    def sharpen(self, factor: float) -> None:
        """Multiply all class logits by a factor: above 1 surer answers, below 1 more cautious ones."""
        with torch.no_grad():
            self.head.weight.mul_(factor)

    def loss(self, token_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the label of every prefix, (B, T) and (B, T); NO_LABEL counts for nothing."""
        class_logits = self(token_ids).float()  # (B, T, L)
        return F.cross_entropy(class_logits.flatten(0, 1), target_ids.flatten(), ignore_index=NO_LABEL)

    def embed(self, token_ids: Tensor, positions: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """The input of the first block: (B, T) → (B, T, C); candidates all have the prefix as their history."""
        if not isinstance(kv_cache, CandidateView):
            return super().embed(token_ids, positions, kv_cache)
        B, k = token_ids.shape
        positions = positions.expand(B, k).reshape(B * k, 1)
        return super().embed(token_ids.reshape(B * k, 1), positions, kv_cache).view(B, k, -1)


class CandidateView(KVCache):
    """A prefix as k alternative next tokens see it: each attends to the whole prefix and to itself, to no other one.

    Nothing is written into the cache of the prefix until `take` appends the token that was chosen, with the keys and
    values it already has: going on costs no second pass.
    """

    def __init__(self, prefix: KVCache) -> None:
        self.prefix = prefix
        self.lengths = prefix.lengths
        self.is_causal = False
        self.candidates = prefix.history[:, :0]
        self._longest = max(prefix.lengths)
        self._stored: list[tuple[Tensor, Tensor]] = []

    def begin(self, token_ids: Tensor) -> Tensor:
        """Note the candidates (B, k); returns their positions, (k,) or (B, k). Raises ValueError for a full cache."""
        if self._longest >= self.prefix.capacity:
            raise ValueError(f"the cache holds {self.prefix.capacity} tokens a row and has no room for candidates")
        B, k = token_ids.shape
        device = token_ids.device
        self.candidates, self._stored = token_ids, []
        itself = torch.eye(k, dtype=torch.bool, device=device)
        if len(set(self.lengths)) == 1:
            self.mask = torch.cat((itself.new_ones(k, self._longest), itself), dim=1)  # (k, S + k)
            return torch.full((k,), self._longest, device=device)
        lengths = torch.tensor(self.lengths, device=device)
        seen = torch.arange(self._longest, device=device) < lengths.view(B, 1, 1, 1)  # (B, 1, 1, S)
        self.mask = torch.cat((seen.expand(B, 1, k, -1), itself.expand(B, 1, k, k)), dim=-1)  # (B, 1, k, S + k)
        return lengths.unsqueeze(1).expand(B, k)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix and behind them those of the candidates: (B, K, k, D) → (B, K, S + k, D)."""
        assert layer == len(self._stored)
        self._stored.append((keys, values))
        prefix_keys = self.prefix.keys[layer, :, :, : self._longest]
        prefix_values = self.prefix.values[layer, :, :, : self._longest]
        return torch.cat((prefix_keys, keys), dim=2), torch.cat((prefix_values, values), dim=2)

    def with_history(self, token_ids: Tensor) -> Tensor:
        """Each candidate behind the last tokens of its own prefix: (B·k, 1) → (B·k, HISTORY + 1)."""
        k = token_ids.shape[0] // len(self.lengths)
        return torch.cat((self.prefix.history.repeat_interleave(k, dim=0), token_ids), dim=1)

    def end(self, token_ids: Tensor) -> None:
        """Nothing to count: no candidate has been chosen yet."""

    def take(self, chosen: Tensor) -> None:
        """Append to every row of the prefix its candidate number `chosen` (B,); this view is used up then."""
        rows = torch.arange(len(self.lengths), device=chosen.device)
        slots = torch.tensor(self.lengths, device=chosen.device)
        for layer, (keys, values) in enumerate(self._stored):
            self.prefix.keys[layer, rows, :, slots] = keys[rows, :, chosen].to(self.prefix.keys.dtype)
            self.prefix.values[layer, rows, :, slots] = values[rows, :, chosen].to(self.prefix.values.dtype)
        newest = self.candidates[rows, chosen].unsqueeze(1)
        self.prefix.history = torch.cat((self.prefix.history, newest), dim=1)[:, 1:]
        self.prefix.lengths = [length + 1 for length in self.prefix.lengths]


def log_odds(class_logits: Tensor, label: int) -> Tensor:
    """ln p(label) − ln p(any other label): (…, L) → (…); its logsigmoid is ln p(label), of its negative ln p(not)."""
    if class_logits.shape[-1] == 2:
        return class_logits[..., label] - class_logits[..., 1 - label]  # as below, only faster
    others = [number for number in range(class_logits.shape[-1]) if number != label]
    return class_logits[..., label] - class_logits[..., others].logsumexp(dim=-1)


def discriminator_from_checkpoint(checkpoint: Checkpoint) -> tuple[Discriminator, list[str]]:
    """The discriminator of a checkpoint and the names of its labels.

    Raises CheckpointError when it holds something else, or weights that do not fit its config.
    """
    if checkpoint.kind != KIND:
        raise CheckpointError(
            f"{checkpoint.path} holds a {checkpoint.kind}, but a discriminator is needed here; "
            "train one: python -m training.train_discriminator --help"
        )
    labels = checkpoint.provenance.get("labels")
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{checkpoint.path} does not name the labels of its discriminator; train it again")
    given = checkpoint.state_dict
    with outlined():
        expected = Discriminator(checkpoint.model_config, len(labels), next_token_head_like(given)).state_dict()
    for name in sorted(set(expected) | set(given)):
        if name not in expected or name not in given or expected[name].shape != given[name].shape:
            raise CheckpointError(f"{checkpoint.path} contradicts itself: weight {name!r} does not fit its config")
    return Discriminator.from_state_dict(checkpoint.model_config, given), labels
