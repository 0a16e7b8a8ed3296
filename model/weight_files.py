"""Read the weights of a Hugging Face folder by name: safetensors or `.bin`, one file or many, never more than needed.

safetensors are memory-mapped: only the tensor that is asked for is copied. `.bin` files are pickles, so they are
opened with `weights_only=True`, which allows tensors and nothing else.
"""

import contextlib
import json
import pickle
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from command_line import EXIT_CHECKPOINT, MissingPackageError, UserError

MAX_JSON_BYTES = 1 << 26
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class WeightsError(UserError):
    """Weights are missing, damaged or do not fit; the message names the file and the tensor."""

    exit_code = EXIT_CHECKPOINT


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; raises WeightsError when there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise WeightsError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MB, which no such file should be")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is damaged: it holds no JSON object")
    return values


class WeightFiles:
    """A context manager over the weight files of a folder.

    Raises WeightsError for whatever is wrong with them, MissingPackageError when safetensors is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder
        """The file that says which tensors there are: the only one, or the index of many."""
        self._open = contextlib.ExitStack()
        try:
            self._file_of, self._tensors = self._open_all()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._file_of)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor in its stored precision, still mapped from the file; it must have the given shape."""
        if name not in self._file_of:
            raise WeightsError(f"{self.source} misses the tensor {name}")
        path = self._file_of[name]
        tensor: Tensor = self._tensors[path][name] if path.suffix == ".bin" else self._tensors[path].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise WeightsError(f"{path}: tensor {name} has shape {tuple(tensor.shape)}, but {shape} is needed")
        if tensor.dtype not in _FLOATING:
            raise WeightsError(f"{path}: tensor {name} is {tensor.dtype}, not a floating-point number")
        return tensor.detach()  # a `.bin` may hold parameters, which would record what is done with them

    def _open_all(self) -> tuple[dict[str, Path], dict[Path, Any]]:
        listed = self._listed()
        tensors = {path: self._open_one(path) for path in dict.fromkeys(listed.values())}
        held = {path: set(tensors[path].keys()) for path in tensors}
        if list(listed) == [""]:
            (path,) = tensors
            return dict.fromkeys(held[path], path), tensors
        for name, path in listed.items():
            if name not in held[path]:
                raise WeightsError(f"{path} misses the tensor {name}, which the folder's index promises")
        return listed, tensors

    def _listed(self) -> dict[str, Path]:
        """Tensor name → file; a single file stands under an empty name, since only itself knows what it holds."""
        for single in _SINGLE_FILES:
            index = self.folder / f"{single}.index.json"
            if (self.folder / single).is_file():
                self.source = self.folder / single
                return {"": self.source}
            if index.is_file():
                self.source = index
                return self._read_index(index, Path(single).suffix)
        raise WeightsError(f"{self.folder} holds no weights: there is no {' or '.join(_SINGLE_FILES)}, nor their index")

    def _read_index(self, index: Path, suffix: str) -> dict[str, Path]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{index} is damaged: it has no weight_map")
        listed = {}
        for name, file in weight_map.items():
            # A name with a path in it would reach out of the folder.
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(suffix):
                raise WeightsError(
                    f"{index} is damaged: tensor {name} lies in {file!r}, which is no file of the folder"
                )
            path = self.folder / file
            if not path.is_file():
                raise WeightsError(f"{path} is missing; {index.name} says that it holds the tensor {name}")
            listed[name] = path
        return listed

    def _open_one(self, path: Path) -> Any:
        if path.suffix == ".bin":
            return _open_pickle(path)
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise MissingPackageError("safetensors", "reading safetensors") from None
        try:
            return self._open.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or cut short: {error}") from None


def _open_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Files of the format before PyTorch 1.6 are no zip archives and cannot be mapped.
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is damaged, or holds more than tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise WeightsError(f"{path} holds more than a table of tensors")
    return values
