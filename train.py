"""Train a GPT on a text of your own: `python train.py --data my.txt`, or with no flags on the tales that ship here."""

import os
import re
import sys
import time

STARTED = time.monotonic()

from pathlib import Path  # noqa: E402

from command_line import (  # noqa: E402
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    ArgumentParser,
    UserError,
    add_options,
    flag_name,
    given_options,
    run_program,
)
from data.tokenizers.choices import check_tokenizer_choice  # noqa: E402
from model.config import DEFAULT_PRESET, PRESETS, ModelConfig, preset_config  # noqa: E402
from training.config import TrainConfig  # noqa: E402

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RANK_0_SPEAKS_SECONDS = 20
"""A busy machine may let one process see a mistake seconds after the others."""

EXAMPLES = """\
examples:
  python train.py
  python train.py --data my.txt --minutes 10
  python train.py --data tales-zh --preset small --steps 2000 --run chinese
  python train.py --data my.txt --minutes 10 --resume
"""


def build_parser() -> ArgumentParser:
    """All flags of train.py: what to do with the run, TrainConfig, ModelConfig."""
    parser = ArgumentParser(prog="train.py", description=__doc__, epilog=EXAMPLES)
    run = parser.add_argument_group("run")
    # torchrun takes --run for an abbreviation of its own --run-path; --run-name is no beginning of any of its options.
    run.add_argument("--run", "--run-name", metavar="NAME", help="folder under checkpoints/ (default: corpus, preset)")
    run.add_argument("--resume", action="store_true", help="go on with this run; starts it when there is none")
    run.add_argument("--overwrite", action="store_true", help="replace this run")
    run.add_argument("--dry-run", action="store_true", help="stop after the preflight report; no run folder")
    run.add_argument("--init", metavar="CHECKPOINT", type=Path, help="start from these weights and their tokenizer")
    run.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: {DEFAULT_PRESET})")
    add_options(parser, TrainConfig, "training")
    add_options(parser, ModelConfig, "model (default: the preset's)", show_defaults=False)
    return parser


def main() -> None:
    """Flags → configs → one request → run."""
    parser = build_parser()
    arguments = parser.parse()
    typed = given_options(arguments, TrainConfig)
    train_config = TrainConfig(**typed)
    check_tokenizer_choice(train_config.tokenizer)
    model_overrides = given_options(arguments, ModelConfig)
    preset = arguments.preset or DEFAULT_PRESET
    preset_config(preset, **{"vocab_size": 1, **model_overrides})
    decided = [*model_overrides, *(name for name in ("preset", "tokenizer") if getattr(arguments, name, None))]
    if arguments.init and decided:
        raise UserError(f"{flag_name(decided[0])} cannot change a trained model; leave it out or train without --init")
    if arguments.run is not None and (Path(arguments.run).name != arguments.run or arguments.run in ("", ".", "..")):
        raise UserError(f"--run must be the name of one folder under checkpoints/, but is {arguments.run!r}")

    # From here on torch is needed, which takes a second to load.
    from training.prepared_run import Request
    from training.start import start_training

    model = model_name(arguments.init) if arguments.init else preset
    name = arguments.run or default_run_name(train_config.data, model)

    start_training(
        Request(
            train_config=train_config,
            typed=typed,
            preset=arguments.preset,
            model_overrides=model_overrides,
            run_path=CHECKPOINTS / name,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
            init=arguments.init,
            command=[sys.orig_argv[0], *sys.argv],
            started=STARTED,
        )
    )


def default_run_name(data: str, model: str) -> str:
    """The corpus and the preset, such as `tales-en-mini`, or the model to start from, such as `letters-gpt2`."""
    corpus = "stdin" if data == "-" else Path(data.rstrip("/")).name.split(".")[0]
    return f"{corpus or 'corpus'}-{model}"


def model_name(checkpoint: Path) -> str:
    """The name of a trained model: its run folder's, or the file's own when it lies in no folder of a run."""
    is_of_run = checkpoint.name == "best.pt" or re.fullmatch(r"step-\d+\.pt", checkpoint.name)
    return checkpoint.resolve().parent.name if is_of_run else checkpoint.stem


def main_beside_rank_0() -> None:
    """`main` in the processes that leave the talking to rank 0: after an error they stay until it has spoken.

    torchrun ends all processes as soon as the first one has failed, so rank 0 has to be the first. One that is still
    there met something that rank 0 did not, such as an older train.py on its machine, and says so itself.
    """
    try:
        main()
    except UserError as error:
        if error.exit_code not in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            # One after the other, so that the first of a machine ends the others there.
            time.sleep(RANK_0_SPEAKS_SECONDS + int(os.environ.get("LOCAL_RANK", "0")))
            print(f"train.py: process {os.environ['RANK']}: {' '.join(str(error).split())}", file=sys.stderr)
        raise


if __name__ == "__main__":
    # Under torchrun every process meets the same error, and rank 0 says it.
    if "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":
        run_program(main_beside_rank_0, quiet=True)
    run_program(main)
