"""Continue a text with a trained GPT: `python generate.py --prompt "Once upon a time"`."""

from pathlib import Path

from command_line import ArgumentParser, add_options, given_options, run_program
from generation.config import CHECKPOINTS, GenerateConfig, LoadConfig, SamplingConfig, SpeechConfig
from generation.guidance_config import GuidanceConfig
from generation.output import format_card, json_line, read_prompts
from generation.speech import list_voices

EXAMPLES = """examples:
  python generate.py --prompt "Once upon a time" --temperature 0.7 --num-samples 3
  python generate.py --prompt "The fox" --show-next 10
"""


def build_parser() -> ArgumentParser:
    """All flags of generate.py."""
    parser = ArgumentParser(prog="generate.py", description=__doc__, epilog=EXAMPLES)
    add_options(parser, LoadConfig, "model")
    add_options(parser, GenerateConfig, "prompt")
    add_options(parser, SpeechConfig, "speech")
    add_options(parser, GuidanceConfig, "guidance")
    add_options(parser, SamplingConfig, "sampling")
    return parser


def main() -> None:
    """Flags → configs → one program → run."""
    arguments = build_parser().parse()
    load = LoadConfig(**given_options(arguments, LoadConfig))
    config = GenerateConfig(**given_options(arguments, GenerateConfig))
    speech = SpeechConfig(**given_options(arguments, SpeechConfig))
    guidance = GuidanceConfig(**given_options(arguments, GuidanceConfig))
    sampling = SamplingConfig(**given_options(arguments, SamplingConfig))
    speech.check_beside(config)
    if speech.list_voices:
        print(list_voices())
        return

    from model.checkpoint import read_card
    from model.checkpoint_choice import newest_run_checkpoint

    checkpoint = Path(load.checkpoint) if load.checkpoint else newest_run_checkpoint(CHECKPOINTS)
    if config.info:
        card = read_card(checkpoint)
        print(json_line(card) if config.json else format_card(card))
        return
    prompts = read_prompts(config.prompt)

    # Everything above answers in a blink; torch takes a second to load.
    from generation.modes import Program, Request

    Program(Request(checkpoint, prompts, load, config, guidance, sampling, speech)).run()


if __name__ == "__main__":
    run_program(main)
