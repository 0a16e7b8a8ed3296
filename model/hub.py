"""Find the folder of a pretrained model: one on this disk, or one that the Hugging Face hub holds."""

import re
from pathlib import Path

from command_line import MissingPackageError, UserError

_ALWAYS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
)
_WITHOUT_SAFETENSORS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def find_folder(name: str) -> Path:
    """The folder of a path or of a hub name such as `gpt2`; downloads what import needs, once.

    Raises UserError for a folder that does not exist and for a model that cannot be had (no network, no such name,
    a licence to accept first).
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII) or folder.exists():
        raise UserError(f"{name!r} is neither a folder nor the name of a model on the Hugging Face hub")
    try:
        import huggingface_hub
    except ImportError:
        raise MissingPackageError("huggingface_hub", f"{name!r} is no folder, and downloading it") from None
    try:
        path = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_ALWAYS]))
        if not any(path.glob("model*.safetensors")):
            path = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_ALWAYS, *_WITHOUT_SAFETENSORS]))
    # Everything the hub's client raises is one of the two, being offline included.
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{name!r} is no folder here and could not be downloaded from the Hugging Face hub ({reason}); "
            "without a network, import the path of a folder that was downloaded elsewhere"
        ) from None
    return path
