"""How a discriminator is trained, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from command_line import UserError, check_options, option
from generation.config import check_plot_name


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Texts, labels, body and training of a discriminator; raises UserError when the options contradict each other."""

    desired: tuple[str, ...] = option(
        (),
        "texts with the attribute: file, folder, .jsonl; may be given several times",
        group="labelled texts (one of three ways)",
        metavar="FILE",
    )
    undesired: tuple[str, ...] = option((), "texts without it; may be given several times", metavar="FILE")
    label: tuple[str, ...] = option(
        (), "texts of one of several labels; given once for each file of each label", metavar="NAME=FILE"
    )
    labelled: str | None = option(None, "a .jsonl file whose lines name their labels", metavar="FILE.jsonl")
    rule: str | None = option(
        None,
        "label samples of the language model by a function of their text, such as "
        "training/attributes.py:asks_a_question",
        metavar="PATH.py:FUNCTION",
    )
    text_field: str = option("text", "field of a .jsonl line that holds the text", metavar="NAME")
    label_field: str = option("label", "--labelled: field that holds the label", metavar="NAME")
    encoding: str = option("utf-8", "encoding of the text files", metavar="NAME")

    samples: int = option(2000, "--rule: texts to draw", at_least=40, at_most=10**7, group="samples")
    own_samples: int = option(
        0,
        "beside your texts, learn from so many samples of the language model, labelled by a bag of words that has "
        "learned yours; some thousands help much where you have some hundreds of texts",
        at_least=0,
        at_most=10**7,
    )
    guided_samples: int | None = option(
        None,
        "then learn once more, also from so many samples that begin under the guidance learned so far; what is rare is "
        "found there (default: half as many as --samples or --own-samples)",
        at_least=0,
        at_most=10**7,
    )
    sample_tokens: int = option(128, "tokens of a sample at most", at_least=1, at_most=10**6)
    sample_temperature: float = option(1.0, "temperature; best the one you will decode with", above=0, at_most=100)
    sample_prompt: str = option("", "beginning of every sample (default: none)", metavar="TEXT")

    checkpoint: str | None = option(
        None,
        "language model to be guided: its tokenizer, and its samples for --rule (default: the newest run's)",
        group="model",
        metavar="FILE",
    )
    init: str | None = option(
        None,
        "start from a copy of this language model, which has the same tokenizer, instead of a small fresh network",
        metavar="CHECKPOINT",
    )
    body: str | None = option(
        None,
        "fine-tune this sequence classifier of Hugging Face's, such as BERT, instead (pip install transformers); the "
        "result is a folder",
        metavar="FOLDER",
    )
    n_layer: int = option(2, "transformer blocks", at_least=1, at_most=1024)
    n_head: int = option(2, "query heads", at_least=1, at_most=4096)
    n_embd: int = option(64, "channels", at_least=1, at_most=2**20)
    context_length: int = option(256, "tokens seen at once", at_least=8, at_most=2**20)
    dropout: float = option(0.1, "share of activations dropped while training", at_least=0, below=1)
    token_noise: float | None = option(
        None,
        "share of tokens replaced by random ones while training (default: 0.3, with --rule or --own-samples 0.1)",
        at_least=0,
        below=1,
    )
    next_token_rank: int = option(
        32,
        "rank of the head for --guidance-mode fast, which scores all next tokens at once from this language model's "
        "hidden states; 0: none",
        at_least=0,
    )

    epochs: int = option(8, "passes over the training texts", at_least=1, at_most=10**6, group="training")
    batch_texts: int = option(32, "texts in an optimizer step", at_least=1, at_most=2**20)
    trace: float | None = option(
        None,
        "how much a prefix learns in the last epoch from what longer ones learn, and not from what the network answers "
        "to them; 1: from labels alone (default: 1, with --rule or --own-samples 0.3)",
        at_least=0,
        at_most=1,
    )
    learning_rate: float | None = option(
        None,
        "peak rate of Muon, AdamW's a quarter (default: 0.02, with --init 0.002); with --body of AdamW (0.00005)",
        above=0,
        at_most=1,
    )
    weight_decay: float = option(0.1, "decay of the matrices, times the learning rate", at_least=0)
    validation_fraction: float = option(0.2, "share of the texts held out", above=0, below=1)
    seed: int = option(1337, "seed of weights, order, dropout and samples", at_least=0, at_most=2**31 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", metavar="NAME")

    output: str | None = option(
        None,
        "file to write, with --body a folder (default: checkpoints/discriminators/LABEL.pt, with --body LABEL)",
        group="result",
        metavar="FILE.pt",
    )
    overwrite: bool = option(False, "replace the file that is there")
    plot: str | None = option(
        None, "picture of accuracy and calibration by prefix length (default: beside the result)", metavar="FILE.png"
    )

    def __post_init__(self) -> None:
        check_options(self)
        ways = {
            "--desired with --undesired": bool(self.desired or self.undesired),
            "--label": bool(self.label),
            "--labelled": self.labelled is not None,
            "--rule": self.rule is not None,
        }
        if sum(ways.values()) != 1:
            given = [way for way, is_given in ways.items() if is_given]
            raise UserError(
                f"give the labels in one way, {', '.join(ways)}, but {' and '.join(given) or 'none'} is given"
            )
        if bool(self.desired) != bool(self.undesired):
            missing = "--undesired" if self.desired else "--desired"
            raise UserError(f"{missing} is missing: a discriminator learns from texts with and without the attribute")
        if self.rule is not None and self.own_samples:
            raise UserError("with --rule all texts are samples of the language model: say --samples, not --own-samples")
        if self.guided_samples and (self.body is not None or (self.rule is None and not self.own_samples)):
            raise UserError(
                "--guided-samples needs --rule or --own-samples, which label them, and no --body, which is too slow to "
                "guide them; leave it out"
            )
        if self.body is not None and self.init is not None:
            raise UserError("--body and --init both name a body for the discriminator; give one of them")
        check_plot_name(self.plot)
        if self.n_embd % self.n_head:
            raise UserError(f"--n-embd ({self.n_embd}) must be a multiple of --n-head ({self.n_head})")

    @property
    def n_guided_samples(self) -> int:
        """How many samples begin under guidance in the second round; 0: there is none."""
        if self.body is not None:
            return 0
        n_samples = self.samples if self.rule is not None else self.own_samples
        return n_samples // 2 if self.guided_samples is None else self.guided_samples

    @property
    def last_trace(self) -> float:
        """λ of TD(λ) in the last epoch: a network that has read few texts has no answers yet to learn from."""
        if self.trace is not None:
            return self.trace
        return 0.3 if self.rule is not None or self.own_samples else 1.0

    @property
    def noise(self) -> float:
        """Share of tokens replaced: hundreds of texts are learned by heart sooner than thousands of samples."""
        if self.token_noise is not None:
            return self.token_noise
        return 0.1 if self.rule is not None or self.own_samples else 0.3

    @property
    def peak_learning_rate(self) -> float:
        """A trained body wants smaller steps than fresh weights (BERT: Devlin et al. 2018, appendix A.3)."""
        return self.learning_rate or (0.00005 if self.body is not None else 0.002 if self.init is not None else 0.02)
