"""What the model writes on the way: the same prompt's continuation at every evaluation, shown and kept."""

from __future__ import annotations

from pathlib import Path

from data.prepare import PreparedCorpus
from generation.config import SamplingConfig
from generation.text_generator import TextGenerator
from model.checkpoint import StorageError
from model.gpt import GPT
from training.config import TrainConfig
from training.distributed import Workers
from training.parallel import is_sharded
from training.progress import Progress


class Sampler:
    """Writes the same prompt's continuation at every evaluation, so that one can watch the model learn."""

    def __init__(
        self, model: GPT, corpus: PreparedCorpus, train_config: TrainConfig, path: Path, workers: Workers
    ) -> None:
        """Raises UserError, before a step is trained, for a prompt that the tokenizer cannot represent."""
        self.config, self.path, self.workers = train_config, path, workers
        # The default prompt comes from the corpus, so it is in its language and in its alphabet.
        first_document = next(corpus.validation_documents(), "")
        self.prompt: str = opening(first_document) if self.config.sample_prompt is None else self.config.sample_prompt
        self.generator = TextGenerator(model, corpus.tokenizer)
        if self.config.sample_tokens:
            self.generator.encode_prompt(self.prompt)

    def show(self, step: int, progress: Progress) -> None:
        """Generate, print and append to samples.md."""
        if not self.config.sample_tokens or not self.workers.is_main or is_sharded(self.generator.model):
            return
        sampling = SamplingConfig(max_new_tokens=self.config.sample_tokens, seed=self.config.seed)
        (result,) = self.generator.generate([self.prompt], sampling)
        text = self.prompt + result.text
        progress.say(f"step {step}: {' '.join(text.split())}")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"## Step {step}\n\n{text}\n\n")
        except OSError as error:  # a sample is worth less than the run
            progress.say(f"warning: {StorageError('write', self.path, error)}")


def opening(document: str) -> str:
    """The first words of a document as a prompt: three words, or four characters of a text without spaces."""
    words = document.split(maxsplit=3)[:3]
    text = " ".join(words)
    return text if len(text) <= 40 else document.lstrip()[:4]
