"""What `generate.py` does once its flags are read: continue texts, or show, plot, explain, speak, converse."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import UserError
from generation import reports
from generation.beam_search import search_beams
from generation.best_of import Score, draw_best, mean_log_probability
from generation.config import GenerateConfig, LoadConfig, SamplingConfig, SpeechConfig
from generation.decoding import Piece
from generation.discriminators import build_guidance
from generation.extensions import load_extension
from generation.guidance_config import GuidanceConfig
from generation.inspection import next_tokens
from generation.interactive import Session, run_session
from generation.interruption import Interruption
from generation.logits_processors.base import LogitsProcessor
from generation.output import have_one_target, notify, write_samples, write_text
from generation.plots import plot_next_token
from generation.sound_file import speak_to_file
from generation.speech import Speaker
from generation.stopping import StoppingCriterion
from generation.text_generator import Result, TextGenerator


@dataclass(frozen=True)
class Request:
    """All that the user asked for."""

    checkpoint: Path
    prompts: list[str]
    load: LoadConfig
    config: GenerateConfig
    guidance: GuidanceConfig
    sampling: SamplingConfig
    speech: SpeechConfig


class Program:
    """One model and one request; `run` chooses the mode."""

    def __init__(self, request: Request) -> None:
        load = request.load
        if request.config.beams is not None and request.guidance.discriminator:
            raise UserError("--discriminator follows texts that go on, but --beams swaps them; use --best-of instead")
        self.request = request
        self.generator = TextGenerator.load(
            request.checkpoint, load.device, load.precision, compile=load.compile, notify=notify
        )
        tokenizer = self.generator.tokenizer
        self.processors: list[LogitsProcessor] = [
            load_extension("--processor", text, tokenizer) for text in request.config.processor
        ]
        device = self.generator.model.token_embedding.weight.device
        self.processors += build_guidance(request.guidance, tokenizer, device)
        self.criteria: list[StoppingCriterion] = [
            load_extension("--criterion", text, tokenizer) for text in request.config.criterion
        ]
        scorer = request.config.scorer
        self.score: Score = load_extension("--scorer", scorer, tokenizer) if scorer else mean_log_probability

    def run(self) -> None:
        """Do what was asked for."""
        config = self.request.config
        if config.show_next is not None:
            self._show_next(config.show_next)
        elif config.plot is not None:
            plot_next_token(self.generator, self.request.prompts[0], Path(config.plot), self.request.sampling.top_k)
            notify(f"the picture is in {config.plot}")
        elif config.interactive:
            session = Session(self.generator, self.request.sampling, processors=self.processors, criteria=self.criteria)
            run_session(session, prompts=[prompt for prompt in self.request.prompts if prompt])
        elif config.json:
            self._write_json()
        else:
            self._write_texts()

    def _show_next(self, n: int) -> None:
        for prompt in self.request.prompts:
            found = next_tokens(self.generator, prompt, n, self.request.sampling, self.processors)
            reports.print_next_tokens(found, self.generator, as_json=self.request.config.json)

    def _write_json(self) -> None:
        config, sampling = self.request.config, self.request.sampling
        with Interruption() as interruption:
            for result in self._results(interruption, config.alternatives):
                reports.print_json_sample(result, self.generator, sampling, self._order, config)

    def _results(self, interruption: Interruption, n_alternatives: int = 0) -> list[Result]:
        """All texts at their end, by the strategy that was asked for."""
        request, config = self.request, self.request.config
        rules: dict[str, Any] = {"processors": self.processors, "criteria": self.criteria, "limits": [interruption]}
        rules["n_alternatives"] = n_alternatives
        if config.beams is not None:
            return search_beams(self.generator, request.prompts, request.sampling, config.beams, **rules)
        if config.best_of is not None:
            return draw_best(
                self.generator, request.prompts, request.sampling, config.best_of, score=self.score, **rules
            )
        return self.generator.generate(request.prompts, request.sampling, explain=config.explain, **rules)

    def _write_texts(self) -> None:
        pieces = self._stream()
        if self.request.config.explain:
            pieces = reports.explained(pieces, self.generator, self._order, hold=have_one_target())
        prompts, n_samples, speech = self.request.prompts, self.request.sampling.num_samples, self.request.speech
        written: list[str] = []

        def write(text: str) -> None:
            write_text(text)
            written.append(text)
            if speaker is not None:
                speaker.push(text)

        speaker: Speaker | None = None
        if speech.speak:
            with Speaker(speech, notify) as speaker:
                write_samples(pieces, prompts, n_samples, write)
        else:
            write_samples(pieces, prompts, n_samples, write)
        if speech.speak_to is not None:
            self._speak_to("".join(written), Path(speech.speak_to))

    def _speak_to(self, text: str, path: Path) -> None:
        try:
            speak_to_file(text, path, self.request.speech)
            notify(f"the speech is in {path}")
        except UserError as error:
            notify(f"no speech: {error}")

    def _stream(self) -> Iterator[Piece]:
        config = self.request.config
        with Interruption() as interruption:
            if config.beams is not None or config.best_of is not None:
                # Which text it will be is known at the end.
                for result in self._results(interruption):
                    yield Piece(result.sample // (config.best_of or 1), result.text, None, None, result.reason)
                return
            yield from self.generator.stream(
                self.request.prompts,
                self.request.sampling,
                processors=self.processors,
                criteria=self.criteria,
                limits=[interruption],
                n_alternatives=config.alternatives if config.explain else 0,
                explain=config.explain,
            )

    @property
    def _order(self) -> str:
        return str(self.generator.build_chain(self.request.sampling, self.processors))
