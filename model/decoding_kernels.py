"""Faster decoding on a CPU: the network in one call, and linear layers with weights in 32, 16 or 8 bits.

One decoded token costs one reading of all weights. torch's product of a single row reads with one thread, and its bf16
and int8 ones need instructions that few processors have; around the products, each of a block's forty small operations
costs about as long as a product of a small model. `decoding_kernels.cpp` takes a token through all of them in one
call and reads with all threads, at the speed of the memory, whatever the width. The file is compiled for this very
processor when it is first asked for (`compiling`).
"""

import ctypes
import functools
import mmap
import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.block import Block
from model.compiling import compiled_library
from model.gpt import GPT
from model.kv_cache import KVCache
from model.normalization import LayerNorm, RMSNorm

WeightType = Literal["fp32", "bf16", "int8"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

MOST_ROWS = 16
"""With more rows, arithmetic takes longer than reading, and torch's blocked matrix product is the faster one."""

_MADV_COLLAPSE = 25
"""Of Linux's madvise(2)."""
_SOURCE = Path(__file__).with_name("decoding_kernels.cpp")


_ACTIVATIONS = ("gelu", "gelu_tanh", "relu_squared", "swiglu")
"""Feed-forward variants in the order of the C++ file's `Activation`."""

_Address, _Number, _Real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


# The structs of the C++ file, which explains their fields.
class _Linear(ctypes.Structure):
    _fields_ = (("weight", _Address), ("scale", _Address), ("bias", _Address), ("O", _Number), ("I", _Number))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _Address), ("bias", _Address))


class _Block(ctypes.Structure):
    _norms = (("attention_norm", _Norm), ("feed_forward_norm", _Norm))
    _fields_ = (*_norms, *((name, _Linear) for name in ("qkv", "projection", "gate", "up", "down")))


class _NgramTable(ctypes.Structure):
    _fields_ = (("weight", _Address), ("n_rows", _Number))


class _Model(ctypes.Structure):
    _tables = (("token_embedding", _Address), ("position_embedding", _Address))
    _ngrams = (("bigrams", _NgramTable), ("trigrams", _NgramTable))
    _sizes = ((name, _Number) for name in ("V", "n_blocks", "C", "H", "K", "D", "F"))
    _choices = (("subtracts_mean", _Number), ("activation", _Number), ("norm_eps", _Real), ("qk_norm_eps", _Real))
    _fields_ = (*_tables, *_ngrams, ("blocks", _Address), *_sizes, ("final_norm", _Norm), *_choices)


class _Step(ctypes.Structure):
    _rows = ((name, _Address) for name in ("tokens", "lengths", "history", "outputs"))
    _of_positions = ((name, _Address) for name in ("cosines", "sines", "keys", "values"))
    _fields_ = (("B", _Number), ("capacity", _Number), *_rows, *_of_positions)


class FewRowsLinear(nn.Module):
    """A linear layer for decoding: no gradients, weights as `weight_type`, everything else in float32.

    int8: row o of the matrix is scale[o] · stored[o], the largest weight of the row being ±127 (absmax quantization;
    Dettmers et al. 2022, arxiv.org/abs/2208.07339).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, weight_type: WeightType) -> None:
        """`weight` (O, I) and `bias` (O,) are those of a linear layer on the CPU; raises UserError: see `compiled`."""
        super().__init__()
        stored, self.scale = weight.detach().float(), None
        if weight_type == "int8":
            self.scale = stored.abs().amax(dim=1) / 127  # (O,)
            # A row of zeros stays one.
            stored = (stored / self.scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).round()
        # Plain attributes: as buffers they could be moved, and the addresses would point to nothing.
        self.stored = stored.to(_DTYPES[weight_type]).contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self._n_outputs, self._n_inputs = weight.shape
        self._product = getattr(compiled(), f"linear_{weight_type}")
        tensors = (self.stored, self.scale, self.bias)
        self.pointers = _Linear(*(None if t is None else t.data_ptr() for t in tensors), *weight.shape)
        """For the C++ file; good as long as this layer lives."""

    @property
    def weight(self) -> Tensor:
        """The matrix in float32, (O, I)."""
        wide = self.stored.float()
        return wide if self.scale is None else wide * self.scale.unsqueeze(1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        n_rows = inputs.numel() // self._n_inputs
        if n_rows > MOST_ROWS or inputs.dtype != torch.float32:
            return F.linear(inputs, self.weight, self.bias)
        inputs = inputs.contiguous()
        outputs = torch.empty(*inputs.shape[:-1], self._n_outputs)
        self._product(self.pointers, inputs.data_ptr(), outputs.data_ptr(), n_rows)
        return outputs


class DecodingStep:
    """One new token of a few rows through a GPT up to its final norm, without gradients."""

    def __init__(self, model: GPT, weight_type: WeightType) -> None:
        """The linear layers of `model` are FewRowsLinear of this `weight_type`."""
        config = model.config
        self._function = getattr(compiled(), f"step_through_model_{weight_type}")
        self._rotary = model.rotary
        # What is pointed to has to stay.
        self._kept: list[object] = [model.blocks]
        self._blocks = (_Block * config.n_layer)(*(self._block(block) for block in model.blocks))  # type: ignore[arg-type]
        positions = model.position_embedding
        self._model = _Model(
            token_embedding=self._address(model.token_embedding.weight),
            position_embedding=None if positions is None else self._address(positions.weight),
            bigrams=self._ngram_table(model, 2),
            trigrams=self._ngram_table(model, 3),
            blocks=ctypes.addressof(self._blocks),
            V=config.vocab_size,
            n_blocks=config.n_layer,
            C=config.n_embd,
            H=config.n_head,
            K=config.key_value_heads,
            D=config.channels_per_head,
            F=config.feed_forward_width,
            final_norm=self._norm(model.final_norm),
            subtracts_mean=config.normalization == "layernorm",
            activation=_ACTIVATIONS.index(config.feed_forward),
            norm_eps=config.norm_eps,
            qk_norm_eps=torch.finfo(torch.float32).eps if config.qk_norm else -1.0,
        )

    def _address(self, parameter: Tensor) -> int:
        tensor = parameter.detach().float().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _block(self, block: Block) -> _Block:
        layers = [("qkv", block.attention.qkv), ("projection", block.attention.projection)]
        return _Block(
            attention_norm=self._norm(block.attention_norm),
            feed_forward_norm=self._norm(block.feed_forward_norm),
            **{name: layer.pointers for name, layer in (*layers, *block.feed_forward.named_children())},
        )

    def _norm(self, norm: LayerNorm | RMSNorm) -> _Norm:
        return _Norm(**{name: self._address(parameter) for name, parameter in norm.named_parameters()})

    def _ngram_table(self, model: GPT, order: int) -> _NgramTable:
        tables = {} if model.ngram_embedding is None else dict(model.ngram_embedding.tables.named_children())
        if str(order) not in tables:
            return _NgramTable()
        weight = tables[str(order)].weight
        return _NgramTable(self._address(weight), len(weight))  # type: ignore[arg-type]

    def can_take(self, token_ids: Tensor, kv_cache: KVCache) -> bool:
        """Whether these (B, T) are one new token each of at most MOST_ROWS rows, and the cache is in float32."""
        if token_ids.shape[1] != 1 or token_ids.shape[0] > MOST_ROWS or token_ids.dtype != torch.int64:
            return False
        return kv_cache.keys.dtype == torch.float32 and kv_cache.keys.is_contiguous()

    def __call__(self, token_ids: Tensor, kv_cache: KVCache) -> Tensor:
        """The hidden states (B, 1, C) behind the tokens (B, 1), which `kv_cache` takes in.

        Raises ValueError when a row is full or the cache is not one for these rows and this model, IndexError for a
        token that the model does not have.
        """
        B, sizes = token_ids.shape[0], self._model
        shape = (sizes.n_blocks, B, sizes.K, kv_cache.capacity, sizes.D)
        if kv_cache.keys.shape != shape:
            raise ValueError(f"a cache of shape {tuple(kv_cache.keys.shape)} cannot take what needs one of {shape}")
        kv_cache.begin_token()
        token_ids, outputs = token_ids.contiguous(), torch.empty(B, 1, self._model.C)
        lengths = (ctypes.c_int64 * B)(*kv_cache.lengths)
        step = _Step(
            B=B,
            capacity=kv_cache.capacity,
            tokens=token_ids.data_ptr(),
            lengths=ctypes.addressof(lengths),
            history=kv_cache.history.data_ptr(),
            outputs=outputs.data_ptr(),
            keys=kv_cache.keys.data_ptr(),
            values=kv_cache.values.data_ptr(),
        )
        if self._rotary is not None:
            cosines, sines = self._rotary.tables(max(kv_cache.lengths), token_ids.device)
            step.cosines, step.sines = cosines.data_ptr(), sines.data_ptr()
        if not self._function(self._model, step):
            raise IndexError(f"a token id is not below the vocabulary of {self._model.V}")
        kv_cache.end_token()
        return outputs


def use_decoding_kernels(model: GPT, weight_type: WeightType) -> None:
    """Let a model in float32 on the CPU decode with the kernels; raises UserError: see `compiled`.

    Embeddings stay as they are, also that which a tied head shared: of them a token reads only a row.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                if weight_type == "fp32":
                    _gather_in_large_pages(child.weight)
                setattr(module, name, FewRowsLinear(child.weight, child.bias, weight_type))
    model.decoding_step = DecodingStep(model, weight_type)


def _gather_in_large_pages(tensor: Tensor) -> None:
    """Ask Linux (6.1 or newer) to move a tensor into pages of 2 MB, where it stands; elsewhere nothing happens.

    Reading all of it then stops less often to look an address up: a tenth of a step of GPT-2 in fp32. The price is
    0.15 s once, or 1.5 s on a virtual machine whose host has to lend the pages first. Narrower weights are not read
    fast enough to gain by it.
    """
    if sys.platform == "linux":
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        n_bytes = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
        if n_bytes > 0:
            ctypes.CDLL(None).madvise(_Address(start), ctypes.c_size_t(n_bytes), _MADV_COLLAPSE)


@functools.cache
def compiled() -> ctypes.CDLL:
    """The functions of decoding_kernels.cpp; raises UserError when there is no C++ compiler, or one that fails."""
    library = compiled_library(_SOURCE, "or leave out --compile and keep --precision fp32")
    for weight_type in _DTYPES:
        linear, step = getattr(library, f"linear_{weight_type}"), getattr(library, f"step_through_model_{weight_type}")
        linear.argtypes, linear.restype = [ctypes.POINTER(_Linear), _Address, _Address, _Number], None
        step.argtypes, step.restype = [ctypes.POINTER(_Model), ctypes.POINTER(_Step)], ctypes.c_bool
    return library
