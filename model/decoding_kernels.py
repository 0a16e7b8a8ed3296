"""Faster parts for decoding on a CPU: linear layers with weights in 32, 16 or 8 bits, and attention of one position.

One decoded token costs one reading of all weights. torch's product of a single row reads with one thread, and its bf16
and int8 ones need instructions that few processors have; `decoding_kernels.cpp` reads with all threads, at the speed
of the memory, whatever the width. Attention of one position is some twenty operations of torch, or one call. The file
is compiled for this very processor when it is asked for, which takes a second.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from command_line import UserError
from model.attention import CausalAttention
from model.kv_cache import KVCache

WeightType = Literal["fp32", "bf16", "int8"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

MOST_ROWS = 16
"""With more rows, arithmetic takes longer than reading, and torch's blocked matrix product is the faster one."""

_SOURCE = Path(__file__).with_name("decoding_kernels.cpp")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


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
        self._addresses = [None if t is None else t.data_ptr() for t in (self.stored, self.scale, self.bias)]

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
        ends = (n_rows, self._n_outputs, self._n_inputs)
        self._product(*self._addresses, inputs.data_ptr(), outputs.data_ptr(), *ends)
        return outputs


def attend_one(
    heads: Tensor, rotation: tuple[Tensor, Tensor] | None, kv_cache: KVCache, attention: CausalAttention
) -> Tensor:
    """Attention of one new position, which `kv_cache` takes in: (B, 1, (H + 2 K) D) of the qkv layer → (B, 1, H D)."""
    config = attention.config
    B, D, H, K = len(heads), config.channels_per_head, config.n_head, config.key_value_heads
    keys, values = kv_cache.keys[attention.layer], kv_cache.values[attention.layer]
    if keys.dtype != torch.float32 or not keys.is_contiguous():
        raise ValueError(f"the kernel attends to a contiguous cache in float32, but this one is {keys.dtype}")
    mixed = torch.empty(B, 1, H * D)
    turns = (None, None) if rotation is None else (rotation[0].data_ptr(), rotation[1].data_ptr())
    epsilon = torch.finfo(torch.float32).eps if config.qk_norm else -1.0
    n_visible = min(kv_cache.lengths[0] + 1, kv_cache.capacity)
    compiled().attend_one(
        heads.data_ptr(), *turns, keys.data_ptr(), values.data_ptr(), mixed.data_ptr(), B, H, K, D,
        kv_cache.capacity, kv_cache.lengths[0] % kv_cache.capacity, n_visible, epsilon,
    )  # fmt: skip
    return mixed


def use_decoding_kernels(model: nn.Module, weight_type: WeightType) -> None:
    """Let a model in float32 on the CPU decode with the kernels; raises UserError: see `compiled`.

    Embeddings stay as they are, also that which a tied head shared: of them a token reads only a row.
    """
    for module in list(model.modules()):
        if isinstance(module, CausalAttention):
            module.attend_one = attend_one
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, FewRowsLinear(child.weight, child.bias, weight_type))


@functools.cache
def compiled() -> ctypes.CDLL:
    """The functions of decoding_kernels.cpp; raises UserError when there is no C++ compiler, or one that fails.

    Nothing is kept on the disk: the next start compiles anew, in no more time than a stale or foreign file would cost
    in care. The library runs on torch's own OpenMP threads, as many as `torch.set_num_threads` says.
    """
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    way_out = "or leave out --compile and keep --precision fp32"
    if compiler is None:
        raise UserError(f"there is no C++ compiler (c++, g++, clang++) to compile the kernel; install one, {way_out}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoding_kernels.so"
        done = subprocess.run([compiler, *_FLAGS, str(_SOURCE), "-o", str(path)], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip() or "without a message").splitlines()[0]
            raise UserError(
                f"{compiler} could not compile {_SOURCE.name} ({reason}); set CXX to another compiler, {way_out}"
            )
        library = ctypes.CDLL(str(path))
    for weight_type in _DTYPES:
        function = getattr(library, f"linear_{weight_type}")
        function.argtypes, function.restype = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3, None
    attention = library.attend_one
    attention.argtypes, attention.restype = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 7 + [ctypes.c_float], None
    return library
