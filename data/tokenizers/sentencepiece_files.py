"""SentencePiece's own file (`tokenizer.model`, as Llama-2 is distributed) as the contents of a tokenizer.json.

The package `sentencepiece` reads the file once, at import; from then on the `tokenizers` library encodes. That both
give the same ids is checked on a sample of awkward texts.
"""

import json
from pathlib import Path
from typing import Any

from command_line import MissingPackageError, UserError
from data.tokenizers.huggingface import SPACE_MARK
from data.tokenizers.tokenizer_json import special_token

_SAMPLE = (
    "Once upon a time, there were 3 (three) cats; they didn't stop.\n\n\tdef f(x):\n        return x[0] != 17.5\n",
    " two  spaces   here and there  ",
    "从前有一只小猫。它说：你好！ Ça va? Größe ﬁ ① ½ Ｆｕｌｌ",
    "🙂👩‍👩‍👧 \u200d\u0301 é e\u0301 \r\n tail",
)


def spec_from_sentencepiece(path: Path) -> dict[str, Any]:
    """A tokenizer.json with the pieces of a SentencePiece BPE model; raises UserError when it would not be the same."""
    try:
        import sentencepiece
    except ImportError:
        raise MissingPackageError("sentencepiece", f"reading {path.name}") from None
    import tokenizers

    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    spec = _spec(pieces)
    converted = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for text in _SAMPLE:
        if converted.encode(text, add_special_tokens=False).ids != pieces.EncodeAsIds(text):
            raise UserError(f"{path} is not a plain SentencePiece BPE: its tokenizer.json would give other ids")
    return spec


def _spec(pieces: Any) -> dict[str, Any]:
    names = [pieces.IdToPiece(i) for i in range(pieces.GetPieceSize())]
    vocab = {name: token_id for token_id, name in enumerate(names)}
    special = [i for i in range(len(names)) if pieces.IsControl(i) or pieces.IsUnknown(i)]
    # SentencePiece merges the pair whose joined piece has the highest score, wherever its border lies.
    merges = sorted(
        (-pieces.GetScore(token_id), name[:cut], name[cut:])
        for token_id, name in enumerate(names)
        for cut in range(1, len(name))
        if name[:cut] in vocab and name[cut:] in vocab and not pieces.IsByte(token_id)
    )
    begin = names[pieces.bos_id()] if pieces.bos_id() >= 0 else None
    return {
        "version": "1.0",
        "added_tokens": [special_token(i, names[i]) for i in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE_MARK},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None if begin is None else _begin_with(begin, pieces.bos_id()),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": names[pieces.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[left, right] for _, left, right in merges],
        },
    }


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    # Models of this kind were trained with a begin-of-text token before every text.
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
