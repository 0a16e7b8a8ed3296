"""A classifier of texts of another make, such as BERT, as a discriminator: a folder that `transformers` opens, too.

It reads text, not our tokens, and in both directions, so every prefix costs a pass of its own and nothing can be
cached. `discriminator.json` beside the weights names the labels, the calibration and the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from command_line import MissingPackageError, UserError
from model.checkpoint import CheckpointError

DESCRIPTION = "discriminator.json"


class TextClassifier:
    """Class logits of texts: a Hugging Face sequence classifier with its own tokenizer."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, labels: list[str], sharpness: float = 1.0) -> None:
        self.model = model
        self.labels = labels
        self.sharpness = sharpness
        """Factor of the logits that makes the probabilities honest."""
        self._tokenizer = tokenizer
        self._tokenizer.truncation_side = "left"  # of a text that is too long the newest part counts

    @classmethod
    def from_body(cls, folder: Path, labels: list[str], device: torch.device | str = "cpu") -> TextClassifier:
        """A fresh head for these labels on the body in a folder; raises UserError when nothing usable is there."""
        transformers = _transformers()
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=len(labels), ignore_mismatched_sizes=True, local_files_only=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"--body {folder} must be a folder with a model and a tokenizer of Hugging Face's: {reason}"
            ) from None
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
        return cls(model.to(device), tokenizer, labels)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> TextClassifier:
        """One that was saved, ready to classify; raises CheckpointError when a file is missing, damaged or changed."""
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            for name, expected in description["sha256"].items():
                if _sha256(folder / name) != expected:
                    raise CheckpointError(f"{folder / name} is not what was saved (SHA-256); train it again")
            labels, sharpness = description["labels"], float(description["sharpness"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder} holds no usable discriminator ({error}); train one: "
                "python -m training.train_discriminator --body FOLDER"
            ) from None
        classifier = cls.from_body(folder, labels, device)
        classifier.sharpness = sharpness
        classifier.model.eval()
        return classifier

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write everything into a folder; `facts` (plain data) tell how it came about. The description comes last."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        self._tokenizer.save_pretrained(folder)
        sums = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != DESCRIPTION}
        description = {"labels": self.labels, "sharpness": self.sharpness, "sha256": sums, **facts}
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def class_logits(self, texts: Sequence[str], batch_texts: int = 64) -> Tensor:
        """N texts → (N, L), with gradients where they are enabled."""
        device = next(self.model.parameters()).device
        longest = getattr(self.model.config, "max_position_embeddings", None)
        parts = []
        for first in range(0, len(texts), batch_texts):
            inputs = self._tokenizer(
                list(texts[first : first + batch_texts]),
                padding=True,
                truncation=longest is not None,
                max_length=longest,
                return_tensors="pt",
            ).to(device)
            parts.append(self.model(**inputs).logits)
        return self.sharpness * torch.cat(parts).float()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("transformers", "a discriminator with a body of Hugging Face's") from error
    return transformers


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
