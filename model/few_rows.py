"""Linear layers for decoding on a CPU, their weights in 32, 16 or 8 bits, multiplied by a function in C++.

One decoded token costs one reading of all weights. torch's product of a single row reads with one thread, its bf16
and int8 ones need instructions that few processors have; `few_rows.cpp` reads with all threads, at the speed of the
memory, whatever the width. It is compiled for this very processor when it is asked for, which takes a second.
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

WeightType = Literal["fp32", "bf16", "int8"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

MOST_ROWS = 16
"""With more rows, arithmetic takes longer than reading, and torch's blocked matrix product is the faster one."""

_SOURCE = Path(__file__).with_name("few_rows.cpp")
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
        if n_rows > MOST_ROWS:
            return F.linear(inputs, self.weight, self.bias)
        inputs = inputs.contiguous()
        outputs = torch.empty(*inputs.shape[:-1], self._n_outputs)
        ends = (n_rows, self._n_outputs, self._n_inputs)
        self._product(*self._addresses, inputs.data_ptr(), outputs.data_ptr(), *ends)
        return outputs


def use_few_rows_linear(model: nn.Module, weight_type: WeightType) -> None:
    """Put a FewRowsLinear in the place of every linear layer of a model on the CPU; raises UserError: see `compiled`.

    Embeddings stay as they are, also that which a tied head shared: of them a token reads only a row.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, FewRowsLinear(child.weight, child.bias, weight_type))


@functools.cache
def compiled() -> ctypes.CDLL:
    """The functions of few_rows.cpp; raises UserError when there is no C++ compiler, or one that fails.

    Nothing is kept on the disk: the next start compiles anew, in no more time than a stale or foreign file would cost
    in care. The library runs on torch's own OpenMP threads, as many as `torch.set_num_threads` says.
    """
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    way_out = "or leave out --compile and keep --precision fp32"
    if compiler is None:
        raise UserError(f"there is no C++ compiler (c++, g++, clang++) to compile the kernel; install one, {way_out}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "few_rows.so"
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
    return library
