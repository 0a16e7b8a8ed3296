"""Bring pretrained GPT-2 and Llama models in, and take models trained here out to Hugging Face or llama.cpp."""

import argparse
import shlex
import sys
from pathlib import Path

from command_line import ArgumentParser, UserError, config_from_dict, run_program

EXAMPLES = """examples:
  python convert.py import gpt2
  python convert.py import path/to/TinyLlama --output checkpoints/tiny/best.pt
  python convert.py export checkpoints/tales/best.pt --to hf
  python convert.py export checkpoints/tales/best.pt --to gguf --dtype q8_0
"""
DTYPES = {"hf": ("f32", "bf16"), "gguf": ("f32", "bf16", "q8_0")}


def build_parser() -> ArgumentParser:
    """Two commands: import NAME_OR_FOLDER and export CHECKPOINT."""
    parser = ArgumentParser(prog="convert.py", description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|export")
    imports = commands.add_parser("import", help="a Hugging Face folder, or the name of a model on the hub")
    imports.add_argument("source", metavar="NAME_OR_FOLDER", help="such as gpt2, or a folder with config.json")
    exports = commands.add_parser("export", help="a checkpoint as a Hugging Face folder or as a GGUF file")
    exports.add_argument("source", metavar="CHECKPOINT", help="such as checkpoints/tales/best.pt")
    exports.add_argument("--to", choices=list(DTYPES), required=True, help="hf: transformers; gguf: llama.cpp")
    exports.add_argument("--dtype", choices=DTYPES["gguf"], default="f32", help="of the weights (default: f32)")
    for command, default in ((imports, "checkpoints/NAME/best.pt"), (exports, "beside the checkpoint")):
        command.add_argument("--output", metavar="PATH", type=Path, help=f"where to write (default: {default})")
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


def main() -> None:
    """Read the flags, convert one model."""
    arguments = build_parser().parse()
    {"import": import_checkpoint, "export": export_checkpoint}[arguments.command](arguments)


def import_checkpoint(arguments: argparse.Namespace) -> None:
    """A model of others → an ordinary checkpoint of ours."""
    from model.hub import find_folder
    from model.staging import check_free

    name = Path(arguments.source).resolve().name if Path(arguments.source).is_dir() else arguments.source.split("/")[-1]
    output = arguments.output or Path("checkpoints") / name / "best.pt"
    check_free(output, arguments.overwrite)
    folder = find_folder(arguments.source)

    from data.tokenizers.huggingface_files import import_tokenizer
    from model.checkpoint import save_checkpoint
    from model.durable_files import StorageError, make_folder
    from model.huggingface import import_model, read_config

    layout, config = read_config(folder)
    tokenizer = import_tokenizer(folder, config.vocab_size, name[:100])
    model = import_model(folder)
    try:
        make_folder(output.parent)
    except OSError as error:
        raise StorageError("save", output, error) from error
    save_checkpoint(
        output,
        model_config=config,
        state_dict=model.state_dict(),
        tokenizer=tokenizer.state(),
        provenance={
            "imported_from": arguments.source,
            "architecture": layout.architecture,
            "command": shlex.join(["python", *sys.argv]),
        },
    )
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{output}: {millions:,.1f} M parameters; try: python generate.py --checkpoint {output}", file=sys.stderr)


def export_checkpoint(arguments: argparse.Namespace) -> None:
    """A checkpoint of ours → files that others open."""
    from data.tokenizers.tokenizer_json import EXPORTED_FILES
    from model.checkpoint import load_checkpoint, read_card
    from model.config import ModelConfig
    from model.layouts.registry import check_exportable
    from model.staging import check_free, staged

    if arguments.dtype not in DTYPES[arguments.to]:
        allowed = ", ".join(DTYPES[arguments.to])
        raise UserError(f"--dtype must be one of {allowed} with --to {arguments.to}, but is {arguments.dtype!r}")
    source = Path(arguments.source)
    output = arguments.output or source.with_name(source.stem + {"hf": "-hf", "gguf": ".gguf"}[arguments.to])
    check_free(output, arguments.overwrite, EXPORTED_FILES)
    card = read_card(source)
    if card["kind"] != "gpt" or output.resolve() == source.resolve():
        problem = f"is a {card['kind']}, not a language model" if card["kind"] != "gpt" else "would be overwritten"
        raise UserError(f"{source} {problem}; name another file")
    check_exportable(config_from_dict(ModelConfig, card["model_config"]))

    from data.tokenizers.gguf_vocabulary import gguf_vocabulary
    from data.tokenizers.registry import tokenizer_from_state
    from data.tokenizers.tokenizer_json import export_tokenizer
    from model.gguf_export import export_gguf
    from model.huggingface import export_model

    checkpoint = load_checkpoint(source)
    config, weights = checkpoint.model_config, checkpoint.state_dict
    tokenizer = tokenizer_from_state(checkpoint.tokenizer)
    begin, end = tokenizer.begin_of_text, tokenizer.end_of_text
    with staged(output) as path:
        if arguments.to == "gguf":
            vocabulary = gguf_vocabulary(tokenizer)
            export_gguf(config, weights, path, vocabulary=vocabulary, dtype=arguments.dtype, name=source.parent.name)
        else:
            path.mkdir()
            export_model(config, weights, path, end_of_text=end, begin_of_text=begin, dtype=arguments.dtype)
            export_tokenizer(tokenizer, path, config.context_length)
    print(f"wrote {output}", file=sys.stderr)


if __name__ == "__main__":
    run_program(main)
