"""`convert.py` as a user runs it: models of others in, ours out, nothing overwritten, every mistake one line."""

import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from data.prepare import prepare_corpus
from data.tokenizers.base import END_OF_TEXT
from data.tokenizers.registry import build_tokenizer, tokenizer_from_state
from data.tokenizers.tokenizer_json import export_tokenizer
from generation.config import SamplingConfig
from generation.score import score_documents
from generation.text_generator import TextGenerator
from model.checkpoint import load_checkpoint, read_card, save_checkpoint
from model.config import preset_config
from model.discriminator import Discriminator
from model.gpt import GPT

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

ROOT = Path(__file__).parents[1]
TALES = (ROOT / "data/tales/en/bright.txt").read_text(encoding="utf-8")[:20_000]
PROMPT = "The quick brown fox"
SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 64}
Convert = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def run_script(script: str, words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Convert:
    """Runs the script in this process, in an empty folder; returns exit code and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        code = run_script("convert.py", words, monkeypatch)
        return code, capfd.readouterr().err

    return run


def randomize(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 of transformers with a tokenizer of its own, as a folder that was downloaded."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-gpt2"
    tokenizer = build_tokenizer("bpe:400", lambda: iter([TALES]), len(TALES))
    special = {"bos_token_id": None, "eos_token_id": tokenizer.end_of_text, "pad_token_id": None}
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=tokenizer.vocab_size, **sizes, **special))
    randomize(twin)
    twin.save_pretrained(folder)
    export_tokenizer(tokenizer, folder, 64)
    return folder


def trained_here(path: Path, preset: str = "mini-llama", choice: str = "bpe:400") -> Path:
    """A checkpoint as training leaves it."""
    tokenizer = build_tokenizer(choice, lambda: iter([TALES]), len(TALES))
    model = GPT(preset_config(preset, vocab_size=tokenizer.vocab_size, **SMALL))
    randomize(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        path, model_config=model.config, state_dict=model.state_dict(), tokenizer=tokenizer.state(), provenance={}
    )
    return path


# ---- import ------------------------------------------------------------------------------------------------------


def test_imported_model_is_an_ordinary_checkpoint(gpt2_folder: Path, convert: Convert) -> None:
    code, error = convert("import", gpt2_folder)
    assert code == 0, error
    path = Path("checkpoints/tiny-gpt2/best.pt")
    assert f"--checkpoint {path}" in error
    assert read_card(path)["provenance"]["imported_from"] == str(gpt2_folder)

    twin = transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(gpt2_folder)
    prompt = theirs(PROMPT, return_tensors="pt")
    expected = twin.generate(**prompt, max_new_tokens=30, do_sample=False, pad_token_id=0)[
        0, prompt.input_ids.shape[1] :
    ]
    (result,) = TextGenerator.load(path, "cpu").generate(PROMPT, SamplingConfig(temperature=0.0, max_new_tokens=30))
    assert result.token_ids == expected.tolist()
    assert result.text == theirs.decode(expected, skip_special_tokens=True)


def test_next_tokens_and_their_probabilities_are_those_of_transformers(
    gpt2_folder: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert convert("import", gpt2_folder, "--output", "model.pt")[0] == 0
    words = ("--checkpoint", "model.pt", "--prompt", PROMPT, "--show-next", 10, "--json")
    assert run_script("generate.py", words, monkeypatch) == 0
    shown = json.loads(capfd.readouterr().out)["next_tokens"]

    twin = transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder)
    prompt = transformers.AutoTokenizer.from_pretrained(gpt2_folder)(PROMPT, return_tensors="pt")
    with torch.no_grad():
        top = twin(**prompt).logits[0, -1].softmax(dim=-1).topk(10)
    assert [token["token_id"] for token in shown] == top.indices.tolist()
    assert [token["probability"] for token in shown] == pytest.approx(top.values.tolist(), rel=1e-4)


CONVERSATION = "User: Who lives in the pond?\nAssistant: 3 frogs and 12 ducks.\nUser: Sum it up.\nAssistant:"


def test_summary_of_a_llama_never_begins_with_a_digit_when_digits_are_banned(convert: Convert) -> None:
    """Its SentencePiece-like vocabulary writes a digit behind a space as one token, `▁3`: that is banned too."""
    llama_folder(Path("llama"))
    assert convert("import", "llama", "--output", "llama.pt")[0] == 0
    generator = TextGenerator.load("llama.pt", "cpu")
    assert generator.tokenizer.begin_of_text == 1
    free = SamplingConfig(num_samples=200, batch_size=50, max_new_tokens=1, temperature=2.0, seed=1)

    def begin_with_digit(sampling: SamplingConfig) -> int:
        results = generator.generate(CONVERSATION, sampling)
        first = [generator.tokenizer.token_bytes(result.token_ids[0]).decode(errors="replace") for result in results]
        return sum(text.strip()[:1].isdigit() for text in first)

    assert begin_with_digit(free) > 0
    assert begin_with_digit(dataclasses.replace(free, ban_first=("digits",))) == 0


def test_score_of_an_imported_llama_is_the_loss_of_transformers(convert: Convert) -> None:
    """Every document begins with <s>, which is given and not predicted, and ends with </s>, which is."""
    llama_folder(Path("llama"))
    assert convert("import", "llama", "--output", "llama.pt")[0] == 0
    generator = TextGenerator.load("llama.pt", "cpu")
    documents = ["Who lives in the pond?", "3 frogs and 12 ducks."]
    score = score_documents(generator.model, generator.tokenizer, documents)

    twin = transformers.AutoModelForCausalLM.from_pretrained("llama")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file="llama/tokenizer.json")
    token_ids = torch.tensor([[token_id for text in documents for token_id in [*theirs.encode(text), 2]]])
    assert int((token_ids == 1).sum()) == len(documents)
    loss = twin(token_ids, labels=token_ids.masked_fill(token_ids == 1, -100)).loss
    assert score.total_nats / len(score.nats) == pytest.approx(loss.item(), rel=1e-5)
    assert score.token_ids == token_ids[token_ids != 1].tolist()


def llama_folder(folder: Path) -> None:
    """A tiny Llama of transformers whose vocabulary spells spaces as ▁ and begins every text with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    texts = [*TALES.splitlines(), *(f" {number} frogs, {number}!" for number in range(100)), CONVERSATION]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trained.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=trained.get_vocab_size() + 16, num_key_value_heads=2, max_position_embeddings=128, **sizes
    )
    twin = transformers.LlamaForCausalLM(config)
    randomize(twin)
    twin.save_pretrained(folder)
    trained.save(str(folder / "tokenizer.json"))


def test_what_was_exported_comes_back_the_same(convert: Convert, tmp_path: Path) -> None:
    source = trained_here(tmp_path / "run" / "best.pt")
    assert convert("export", source, "--to", "hf") == (0, f"wrote {tmp_path / 'run' / 'best-hf'}\n")
    assert convert("import", tmp_path / "run" / "best-hf", "--output", "back.pt")[0] == 0
    first, back = load_checkpoint(source), load_checkpoint(Path("back.pt"))
    for name, tensor in first.state_dict.items():
        assert torch.equal(tensor, back.state_dict[name]), name
    ours, theirs = tokenizer_from_state(first.tokenizer), tokenizer_from_state(back.tokenizer)
    assert ours.encode(TALES) == theirs.encode(TALES)


def test_imported_model_is_fine_tuned_by_adapters_and_leaves_again(
    gpt2_folder: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert convert("import", gpt2_folder, "--output", "base.pt")[0] == 0
    Path("my.txt").write_text(TALES, encoding="utf-8")
    monkeypatch.setattr("training.prepared_run.prepare_corpus", partial(prepare_corpus, cache_folder=Path("tokens")))
    monkeypatch.setattr(train, "CHECKPOINTS", Path("checkpoints").resolve())
    words = ("--init", "base.pt", "--data", "my.txt", "--run", "tuned", "--steps", 2, "--lora-rank", 2)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words), "--sample-tokens", "0", "--threads", "1"])
    train.main()
    assert "export      possible" in capfd.readouterr().err

    tuned = Path("checkpoints/tuned/best.pt")
    assert convert("export", tuned, "--to", "hf", "--output", "out")[0] == 0
    twin = transformers.AutoModelForCausalLM.from_pretrained("out")
    theirs = transformers.AutoTokenizer.from_pretrained("out")
    prompt = theirs(PROMPT, return_tensors="pt")
    base, model = (load_checkpoint(Path(path)).build_model() for path in ("base.pt", tuned))
    with torch.no_grad():
        logits = twin(**prompt).logits
        torch.testing.assert_close(logits, model(prompt.input_ids), rtol=0, atol=1e-4)
        assert (logits - base(prompt.input_ids)).abs().max() > 1e-3


def test_tokenizer_that_is_missing_is_said_before_weights_are_read(gpt2_folder: Path, convert: Convert) -> None:
    folder = Path("bare")
    folder.mkdir()
    (folder / "config.json").write_bytes((gpt2_folder / "config.json").read_bytes())
    code, error = convert("import", folder)
    assert (code, error.count("\n")) == (2, 1)
    assert "bare holds no tokenizer" in error


# ---- export ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["mini-llama", "gpt2"])
@pytest.mark.parametrize("choice", ["bpe:400", "byte", "char"])
def test_exported_folder_opens_in_transformers_unchanged(
    preset: str, choice: str, convert: Convert, tmp_path: Path
) -> None:
    source = trained_here(tmp_path / "best.pt", preset, choice)
    code, error = convert("export", source, "--to", "hf", "--output", "out")
    assert code == 0, error
    model = load_checkpoint(source).build_model()
    tokenizer = tokenizer_from_state(load_checkpoint(source).tokenizer)
    twin = transformers.AutoModelForCausalLM.from_pretrained("out")
    theirs = transformers.AutoTokenizer.from_pretrained("out")
    line = next(line for line in TALES.splitlines() if len(line) > 40 and line != END_OF_TEXT)[:50]
    token_ids = theirs(line, return_tensors="pt").input_ids
    assert token_ids[0].tolist() == tokenizer.encode(line)
    with torch.no_grad():
        torch.testing.assert_close(twin(token_ids).logits, model(token_ids), rtol=0, atol=1e-4)
    assert twin.generation_config.eos_token_id == theirs.eos_token_id == tokenizer.end_of_text


def test_gguf_export_lies_beside_the_checkpoint(convert: Convert, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    source = trained_here(tmp_path / "tales" / "best.pt")
    assert convert("export", source, "--to", "gguf", "--dtype", "q8_0")[0] == 0
    reader = gguf.GGUFReader(tmp_path / "tales" / "best.gguf")
    assert reader.fields["general.name"].contents() == "tales"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"Q8_0", "F32"}


def test_models_that_cannot_leave_are_refused_by_name(convert: Convert, tmp_path: Path) -> None:
    source = trained_here(tmp_path / "best.pt", "mini")
    for target in ("hf", "gguf"):
        code, error = convert("export", source, "--to", target)
        assert (code, error.count("\n")) == (2, 1)
        assert re.search(r"feed_forward relu_squared.*; qk_norm.*--preset mini-llama", error)
    assert [path.name for path in tmp_path.iterdir() if path.name != "here"] == ["best.pt"]


# ---- nothing is lost ---------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unless_asked(gpt2_folder: Path, convert: Convert) -> None:
    Path("mine.pt").write_text("precious")
    code, error = convert("import", gpt2_folder, "--output", "mine.pt")
    assert (code, Path("mine.pt").read_text()) == (2, "precious")
    assert "mine.pt exists already; choose another --output or add --overwrite" in error
    assert convert("import", gpt2_folder, "--output", "mine.pt", "--overwrite")[0] == 0
    load_checkpoint(Path("mine.pt"))

    assert convert("export", "mine.pt", "--to", "hf", "--output", "out")[0] == 0
    assert "exists already" in convert("export", "mine.pt", "--to", "hf", "--output", "out")[1]
    before = Path("out/model.safetensors").stat().st_ino
    assert convert("export", "mine.pt", "--to", "hf", "--output", "out", "--overwrite")[0] == 0
    assert Path("out/model.safetensors").stat().st_ino != before
    Path("out/thesis.txt").write_text("precious")
    code, error = convert("export", "mine.pt", "--to", "hf", "--output", "out", "--overwrite")
    assert (code, Path("out/thesis.txt").read_text()) == (2, "precious")
    assert "out holds thesis.txt, which is no part of an export" in error


def test_checkpoint_is_never_overwritten_by_its_own_export(convert: Convert, tmp_path: Path) -> None:
    source = trained_here(tmp_path / "best.pt")
    before = source.read_bytes()
    code, error = convert("export", source, "--to", "gguf", "--output", source, "--overwrite")
    assert (code, source.read_bytes()) == (2, before)
    assert "best.pt would be overwritten" in error


def test_discriminators_are_no_language_models(convert: Convert, tmp_path: Path) -> None:
    discriminator = Discriminator(preset_config("nano-llama", vocab_size=257, **SMALL), n_labels=2)
    save_checkpoint(
        tmp_path / "mood.pt",
        model_config=discriminator.config,
        state_dict=discriminator.state_dict(),
        tokenizer={"kind": "byte", "version": 1},
        provenance={},
        kind="discriminator",
    )
    code, error = convert("export", tmp_path / "mood.pt", "--to", "hf")
    assert (code, error.count("\n")) == (2, 1)
    assert "mood.pt is a discriminator, not a language model" in error


def test_export_that_fails_leaves_nothing_behind(
    convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trained_here(tmp_path / "run" / "best.pt")

    def full_disk(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.tokenizers.tokenizer_json.export_tokenizer", full_disk)
    code, error = convert("export", source, "--to", "hf")
    assert (code, error.count("\n")) == (4, 1)
    assert "No space left on device" in error
    assert [path.name for path in source.parent.iterdir()] == ["best.pt"]


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: import|export"),
        (("import",), "the following arguments are required: NAME_OR_FOLDER"),
        (("import", "a b"), "'a b' is neither a folder nor the name of a model on the Hugging Face hub"),
        (("import", "./nowhere"), "'./nowhere' is neither a folder nor the name"),
        (("export", "x.pt"), "the following arguments are required: --to"),
        (("export", "x.pt", "--to", "onnx"), "'onnx'"),
        (("export", "x.pt", "--to", "hf", "--dtype", "q8_0"), "--dtype must be one of f32, bf16 with --to hf"),
        (("export", "x.pt", "--to", "hf"), "there is no checkpoint x.pt"),
        (("import", "gpt2", "--ouput", "x"), "--ouput"),
    ],
)
def test_mistakes_are_one_line_and_answered_before_torch_loads(words: tuple[str, ...], message: str) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['convert.py', *{words!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'convert.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode in (2, 3), result.stderr
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_weights_that_cannot_be_used_are_one_line_with_file_and_tensor(gpt2_folder: Path, convert: Convert) -> None:
    """Cut short, shaped otherwise than the config says, or not there: exit code 3, and no checkpoint is left."""
    shutil.copytree(gpt2_folder, "broken")
    path = Path("broken/model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    told = [convert("import", "broken")]
    path.write_bytes(whole)
    config = json.loads(Path("broken/config.json").read_text())
    Path("broken/config.json").write_text(json.dumps({**config, "n_positions": 65}))
    told.append(convert("import", "broken"))
    Path("broken/config.json").write_text(json.dumps({**config, "n_layer": 3}))
    told.append(convert("import", "broken"))
    told.append(convert("import", "."))
    assert [(code, error.count("\n")) for code, error in told] == [(3, 1)] * 4
    cut, misshaped, missing, nothing = (error for _, error in told)
    assert f"{path} is damaged or cut short" in cut
    assert f"{path}: tensor transformer.wpe.weight has shape (64, 32), but (65, 32) is needed" in misshaped
    assert f"{path} misses the tensor transformer.h.2." in missing
    assert ". is no folder of a Hugging Face model: it holds no config.json" in nothing
    assert not Path("checkpoints").exists()


def test_help_shows_both_commands() -> None:
    for words, shown in ((("--help",), "convert.py import gpt2"), (("export", "--help"), "--dtype")):
        result = subprocess.run(
            [sys.executable, str(ROOT / "convert.py"), *words], capture_output=True, text=True, check=True
        )
        assert shown in result.stdout


def test_without_a_network_a_hub_name_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, str(ROOT / "convert.py"), "import", "openai-community/gpt2"]
    result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "'openai-community/gpt2' is no folder here and could not be downloaded" in result.stderr
    assert "import the path of a folder" in result.stderr


def test_without_huggingface_hub_the_install_command_is_said(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, error = convert("import", "gpt2")
    assert (code, error.count("\n")) == (2, 1)
    assert "pip install huggingface_hub" in error
