"""`generate.py` as a user runs it: flags, streams, exit codes."""

import contextlib
import functools
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.tokenizers.characters import CharacterTokenizer
from data.tokenizers.utf8_bytes import ByteTokenizer
from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "generate.py"


def write_checkpoint(path: Path, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"context_length": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "positions": "rotary"}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **shape)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    provenance = {"step": 7, "corpus": "made up"}
    save_checkpoint(
        path,
        model_config=config,
        state_dict=model.state_dict(),
        tokenizer=tokenizer.state(),
        provenance=provenance,
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights over UTF-8 bytes."""
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.pt", ByteTokenizer())


@pytest.fixture
def generate(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the script in this process; returns exit code, stdout and stderr."""

    def run(*words: str, checkpoint: Path | None = checkpoint) -> tuple[int, str, str]:
        chosen = ["--checkpoint", str(checkpoint)] if checkpoint else []
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *chosen, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        captured = capfd.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run


Generate = Callable[..., tuple[int, str, str]]


def start(
    checkpoint: Path, *words: str, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE, **environment: str
) -> subprocess.Popen[bytes]:
    """Start the script as a process of its own, which listens to Ctrl-C as one in a terminal does."""
    command = [sys.executable, str(SCRIPT), "--checkpoint", str(checkpoint), *words]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    # A shell lets what it starts in the background ignore SIGINT, and a suite that was started so hands that on.
    listen = None if sys.platform == "win32" else functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=variables, preexec_fn=listen
    )


def test_prompt_and_continuation_go_to_stdout_and_nothing_else(generate: Generate) -> None:
    code, out, err = generate("--prompt", "Hello", "--max-new-tokens", "30", "--temperature", "0")
    assert (code, err) == (0, "")
    assert out.startswith("Hello")
    assert len(out) > len("Hello\n")
    assert out.endswith("\n")


def test_three_samples_are_the_same_texts_in_a_batch_and_one_by_one(generate: Generate) -> None:
    flags = ["--prompt", "Once", "--top-k", "5", "--temperature", "0.8", "--stop", ".", "--num-samples", "3", "--json"]
    together = [json.loads(line) for line in generate(*flags, "--seed", "1")[1].splitlines()]
    one_by_one = [json.loads(line) for line in generate(*flags, "--seed", "1", "--batch-size", "1")[1].splitlines()]
    assert [sample["text"] for sample in together] == [sample["text"] for sample in one_by_one]
    assert len({sample["text"] for sample in together}) == 3


def test_json_holds_what_a_program_needs(generate: Generate, checkpoint: Path) -> None:
    _, out, _ = generate("--prompt", "a", "--prompt", "武", "--max-new-tokens", "5", "--seed", "9", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["prompt"], second["prompt"]) == ("a", "武")
    assert first["text"] == ByteTokenizer().decode(first["token_ids"])
    assert first["reason"] == "max_new_tokens"
    assert len(first["log_probabilities"]) == 5
    assert first["settings"]["seed"] == 9
    assert checkpoint.read_bytes().endswith(first["checkpoint_sha256"].encode())


def test_json_lists_the_most_probable_tokens_of_every_step(generate: Generate) -> None:
    words = ["--prompt", "a", "--max-new-tokens", "3", "--json"]
    (sample,) = (json.loads(line) for line in generate(*words, "--temperature", "0", "--no-valid-utf8")[1].splitlines())
    assert [len(step) for step in sample["top_alternatives"]] == [5, 5, 5]
    for token, token_id, log_probability, (best, *others) in zip(
        *(sample[name] for name in ("tokens", "token_ids", "log_probabilities", "top_alternatives")), strict=True
    ):
        assert (best["token"], best["token_id"]) == (token, token_id)
        assert best["probability"] == pytest.approx(math.exp(log_probability), rel=1e-4)
        probabilities = [entry["probability"] for entry in (best, *others)]
        assert probabilities == sorted(probabilities, reverse=True)
    assert "steps" not in sample
    (sample,) = (json.loads(line) for line in generate(*words, "--alternatives", "0")[1].splitlines())
    assert "top_alternatives" not in sample


def test_json_lists_tokens_of_the_same_text_one_by_one(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.reports.token_text", lambda tokenizer, token_id: "A")
    (sample,) = (
        json.loads(line) for line in generate("--prompt", "a", "--max-new-tokens", "1", "--json")[1].splitlines()
    )
    assert len({entry["token_id"] for entry in sample["top_alternatives"][0]}) == 5


def test_json_lists_them_for_beams_and_the_best_of_n_too(generate: Generate) -> None:
    words = ["--prompt", "a", "--max-new-tokens", "3", "--json", "--alternatives", "2"]
    for more in (["--beams", "3"], ["--best-of", "3"]):
        (sample,) = (json.loads(line) for line in generate(*words, *more)[1].splitlines())
        assert [len(step) for step in sample["top_alternatives"]] == [2] * len(sample["tokens"])
        for token, log_probability, step in zip(
            sample["token_ids"], sample["log_probabilities"], sample["top_alternatives"], strict=True
        ):
            probabilities = {entry["token_id"]: entry["probability"] for entry in step}
            expected = math.exp(log_probability)
            assert max(probabilities.values()) >= expected * (1 - 1e-5)
            assert probabilities.get(token, expected) == pytest.approx(expected, rel=1e-4)


def test_plain_json_does_not_watch_the_stages(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.trace.Tracer.observe", pytest.fail)
    assert generate("--prompt", "a", "--max-new-tokens", "3", "--json")[0] == 0


def test_samples_of_several_prompts_come_out_whole_and_in_order(generate: Generate) -> None:
    words = ["--prompt", "one", "--prompt", "two", "--num-samples", "2", "--max-new-tokens", "20"]
    texts = [json.loads(line) for line in generate(*words, "--json")[1].splitlines()]
    expected = "".join(sample["prompt"] + sample["text"].removesuffix("\n") + "\n" for sample in texts)
    assert generate(*words)[1] == expected


def test_the_same_seed_prints_the_same_bytes(generate: Generate) -> None:
    runs = {generate("--prompt", "x", "--seed", "5")[1] for _ in range(5)}
    assert len(runs) == 1


def test_a_cropped_prompt_is_said_on_stderr(generate: Generate) -> None:
    code, out, err = generate("--prompt", "x" * 160, "--max-new-tokens", "3")
    assert code == 0
    assert out.startswith("x" * 160)
    assert err == ("note: the prompt has 160 tokens, but the model sees only 16 at once: the first 144 are left out\n")


def test_an_empty_prompt_begins_a_new_text(generate: Generate) -> None:
    assert generate("--prompt", "") == generate()


def test_a_character_that_the_tokenizer_does_not_know_is_named(generate: Generate, tmp_path: Path) -> None:
    small = write_checkpoint(tmp_path / "char.pt", CharacterTokenizer("abc"))
    code, out, err = generate("--prompt", "ab武", checkpoint=small)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "武" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--temperature", "-1"], "--temperature must be a finite number at least 0, but is -1"),
        (["--temperature", "nan"], "--temperature must be a finite number at least 0, but is 'nan'"),
        (["--top-k", "0"], "--top-k must be a whole number at least 1, but is 0"),
        (["--top-p", "1.5"], "--top-p must be"),
        (["--max-new-tokens", "-1"], "--max-new-tokens must be"),
        (["--stop", ""], "--stop must be a text of at least one character"),
        (["--temprature", "1"], "unknown option '--temprature' (did you mean --temperature?)"),
        (["--precision", "fp8"], "--precision must be one of auto, fp32, bf16, int8, but is 'fp8'"),
        (["--prompt", "-", "--prompt", "-"], "--prompt - reads all of standard input"),
        (["--device", "tpu"], "--device must be one of auto, cpu"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(generate: Generate, words: list[str], expected: str) -> None:
    code, out, err = generate(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_what_is_no_checkpoint_is_one_line_and_exit_code_3(generate: Generate, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"not a checkpoint")
    for path in (other, tmp_path / "missing.pt"):
        code, out, err = generate("--prompt", "a", checkpoint=path)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert str(path) in err


def test_help_and_flag_errors_and_cards_never_load_torch(checkpoint: Path) -> None:
    for words, code in ((["--help"], 0), (["--top-k", "x"], 2), (["--info"], 0)):
        program = (
            "import atexit, runpy, sys;"
            "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr));"
            f"sys.argv = [{str(SCRIPT)!r}, '--checkpoint', {str(checkpoint)!r}, *{words!r}];"
            f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (code, "False"), done.stderr


def test_info_prints_the_card(generate: Generate, checkpoint: Path) -> None:
    code, out, err = generate("--info")
    assert (code, err) == (0, "")
    assert "corpus: made up" in out
    card = json.loads(generate("--info", "--json")[1])
    assert card["model_config"]["n_embd"] == 16
    assert checkpoint.read_bytes().endswith(card["sha256"].encode())


def test_info_of_a_damaged_checkpoint_is_exit_code_3(generate: Generate, checkpoint: Path, tmp_path: Path) -> None:
    damaged = bytearray(checkpoint.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "damaged.pt"
    path.write_bytes(damaged)
    assert generate("--info", checkpoint=path)[0] == 3


def test_a_prompt_from_standard_input_loses_its_last_line_break(checkpoint: Path) -> None:
    words = ["--prompt", "-", "--max-new-tokens", "0"]
    process = start(checkpoint, *words)
    out, err = process.communicate("Hällo\nWelt\n".encode(), timeout=60)
    assert (process.returncode, out.decode(), err) == (0, "Hällo\nWelt\n", b"")


def test_standard_input_that_is_not_utf8_is_named_with_its_byte(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        class buffer:  # noqa: N801
            @staticmethod
            def read() -> bytes:
                return b"ab\xff"

    monkeypatch.setattr(sys, "stdin", Stdin)
    code, _, err = generate("--prompt", "-")
    assert (code, "not UTF-8 at byte 2" in err) == (2, True)


def test_a_closed_pipe_is_no_error(checkpoint: Path) -> None:
    with start(
        checkpoint, "--prompt", "first line\n", "--temperature", "0", "--max-new-tokens", "100000000"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first line\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line_and_exit_code_4(checkpoint: Path) -> None:
    with Path("/dev/full").open("wb") as full, start(checkpoint, "--info", stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert err.startswith(b"generate.py: cannot write the output: No space left on device;")
    assert err.count(b"\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_closed_streams_are_no_error(checkpoint: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--checkpoint", str(checkpoint), "--info"]
    command = ["/bin/sh", "-c", 'exec "$@" >&- <&-', "sh", *words]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_without_unicode_shows_escapes_instead_of_failing(checkpoint: Path) -> None:
    process = start(checkpoint, "--prompt", "武", "--max-new-tokens", "0", LC_ALL="C", PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"\\u6b66\n", b"")


def test_ctrl_c_keeps_the_text_so_far_ends_the_line_and_exits_130(checkpoint: Path) -> None:
    process = start(checkpoint, *FOREVER)
    assert process.stdout is not None
    shown = process.stdout.read(200)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown.startswith(b"go ")
    assert (shown + out).endswith(b"\n")
    assert err == b"generate.py: interrupted\n"


@pytest.fixture
def ctrl_c(tmp_path: Path) -> Iterator[list[str]]:
    """Flags that press Ctrl-C when the first row has five tokens, so that the sixth is the last."""
    # A shell lets what it starts in the background ignore SIGINT, and a suite that was started so hands that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    path = tmp_path / "press.py"
    path.write_text(
        "import signal\n"
        "class CtrlC:\n"
        "    reason = 'never'\n"
        "    def __call__(self, token_ids, texts):\n"
        "        if len(token_ids[0]) == 5:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "        return [False] * len(texts)\n"
    )
    yield ["--criterion", f"{path}:CtrlC"]
    signal.signal(signal.SIGINT, before)


SIX = ("--prompt", "go ", "--prompt", "on ", "--num-samples", "2", "--no-valid-utf8", "--suppress-tokens", "10")


def test_ctrl_c_prints_what_every_sample_has_so_far(generate: Generate, ctrl_c: list[str]) -> None:
    expected = generate(*SIX, "--max-new-tokens", "6")[1]
    assert len(set(expected.split("\n"))) == 5  # four lines and the empty end
    assert generate(*SIX, *ctrl_c) == (130, expected, "generate.py: interrupted\n")
    # What has not begun is not shown: here the second prompt.
    first_two = "".join(line + "\n" for line in expected.split("\n")[:2])
    assert generate(*SIX, *ctrl_c, "--batch-size", "2")[:2] == (130, first_two)
    code, out, err = generate(*SIX, *ctrl_c, "--explain")
    assert (code, out, err.count(" · step ")) == (130, expected, 4 * 6)


def test_ctrl_c_gives_the_json_of_every_sample_with_the_reason_interrupted(
    generate: Generate, ctrl_c: list[str]
) -> None:
    whole = [json.loads(line)["text"] for line in generate(*SIX, "--json", "--max-new-tokens", "6")[1].splitlines()]
    code, out, err = generate(*SIX, *ctrl_c, "--json")
    samples = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (130, "generate.py: interrupted\n")
    assert [sample["text"] for sample in samples] == whole
    assert {sample["reason"] for sample in samples} == {"interrupted"}
    for strategy in (["--best-of", "3"], ["--beams", "3"]):
        code, out, _ = generate(*SIX, *ctrl_c, "--json", *strategy, "--batch-size", "6")
        samples = [json.loads(line) for line in out.splitlines()]
        # The second prompt has not begun.
        assert [(sample["prompt"], sample["reason"]) for sample in samples] == [("go ", "interrupted")] * 2
        assert all(len(sample["tokens"]) in (5, 6) for sample in samples)


def test_a_second_ctrl_c_ends_at_once(generate: Generate, tmp_path: Path, ctrl_c: list[str]) -> None:
    path = tmp_path / "twice.py"
    path.write_text(
        (tmp_path / "press.py")
        .read_text()
        .replace("(signal.SIGINT)", "(signal.SIGINT)\n" + 12 * " " + "signal.raise_signal(signal.SIGINT)")
    )
    code, out, err = generate(*SIX, "--criterion", f"{path}:CtrlC")
    assert (code, err) == (130, "generate.py: interrupted\n")
    assert out.count("\n") == 1


FOREVER = ("--prompt", "go ", "--temperature", "0", "--max-new-tokens", "100000000")


def test_an_explained_text_streams_and_ctrl_c_keeps_it(checkpoint: Path, tmp_path: Path) -> None:
    with (tmp_path / "trace").open("wb") as trace:
        process = start(checkpoint, *FOREVER, "--explain", stderr=trace)
        assert process.stdout is not None
        shown = process.stdout.read(50)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown.startswith(b"go ")
    assert (shown + out).endswith(b"\n")
    explained = (tmp_path / "trace").read_text(encoding="utf-8")
    assert explained.count(" · step ") >= 30
    assert explained.endswith("generate.py: interrupted\n")


def test_a_file_for_both_streams_holds_the_text_behind_its_explanation(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "both"
    with path.open("wb") as both:
        words = ["--prompt", "go", "--explain", "--max-new-tokens", "4"]
        with start(checkpoint, *words, stdout=both, stderr=subprocess.STDOUT) as process:
            assert process.wait(timeout=60) == 0
    lines = path.read_text(encoding="utf-8").split("\n")
    assert sum(line.startswith("sample 0 · step ") for line in lines) == 4
    last_trace = max(number for number, line in enumerate(lines) if "candidates, entropy" in line)
    assert lines[last_trace + 1].startswith("go")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_shows_the_text_behind_its_explanation_also_after_ctrl_c(checkpoint: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    shown = ""
    with start(checkpoint, *FOREVER, "--explain", stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        while shown.count(" · step ") < 5:
            shown += os.read(controller, 1000).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while part := os.read(controller, 10_000):
                shown += part.decode(errors="replace")
    os.close(controller)
    assert process.returncode == 130
    traces, _, text = shown.rpartition("candidates, entropy")
    assert "\x1b[1;32m" in traces
    assert "go " not in traces
    assert "\r\ngo " in text
    assert text.endswith("generate.py: interrupted\r\n")


def test_the_text_streams_while_it_is_drawn(checkpoint: Path) -> None:
    process = start(checkpoint, *FOREVER)
    assert process.stdout is not None
    deadline = time.monotonic() + 240
    n_bytes = 0
    while n_bytes < 300 and time.monotonic() < deadline:
        n_bytes += len(process.stdout.read(100))
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert n_bytes >= 300


def test_texts_of_beams_and_the_best_of_n_stand_behind_their_prompts(generate: Generate) -> None:
    words = ["--prompt", "AAA", "--prompt", "BBB", "--num-samples", "2", "--max-new-tokens", "3", "--top-k", "1"]
    for more, n_texts in ((["--beams", "2"], 1), (["--best-of", "2"], 2)):
        found = [json.loads(line) for line in generate(*words, *more, "--json")[1].splitlines()]
        assert [sample["prompt"] for sample in found] == ["AAA"] * n_texts + ["BBB"] * n_texts
        assert generate(*words, *more)[1] == "".join(sample["prompt"] + sample["text"] + "\n" for sample in found)


def test_beams_and_the_best_of_n_are_chosen_from_the_command_line(generate: Generate, tmp_path: Path) -> None:
    words = ["--prompt", "ab", "--max-new-tokens", "8", "--json"]

    def texts(*more: str) -> list[str]:
        code, out, err = generate(*words, *more)
        assert (code, err) == (0, "")
        return [json.loads(line)["text"] for line in out.splitlines()]

    assert texts("--beams", "1") == texts("--temperature", "0")
    two = texts("--beams", "4", "--num-samples", "2")
    assert texts("--beams", "4") == two[:1] != two[1:]
    assert generate(*words[:-1], "--beams", "4")[1] == f"ab{two[0]}\n"
    path = tmp_path / "my.py"
    path.write_text(
        "class MostOf:\n"
        "    def __init__(self, letter):\n"
        "        self.letter = letter\n"
        "    def __call__(self, result):\n"
        "        return result.text.count(self.letter)\n"
    )
    drawn = texts("--num-samples", "20")
    letter = max("".join(drawn), key="".join(drawn).count)
    best = max(drawn, key=lambda text: text.count(letter))
    assert texts("--best-of", "20", "--scorer", f"{path}:MostOf(letter={letter!r})") == [best]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--beams", "2", "--best-of", "2"], "--beams and --best-of are two ways to choose a text"),
        (["--beams", "2", "--explain"], "--explain follows one text token by token, but --beams chooses among many"),
        (["--best-of", "2", "--interactive"], "--interactive follows one text token by token, but --best-of chooses"),
        (["--scorer", "my.py:Score"], "it needs --best-of N"),
        (["--beams", "2", "--discriminator", "x.pt"], "--beams swaps them; use --best-of instead"),
        (["--beams", "2", "--num-samples", "3"], "--num-samples (3) must not be above --beams (2)"),
        (["--show-next", "2", "--plot", "x.png"], "--show-next and --plot are different things to do"),
        (["--json", "--interactive"], "--json prints objects for programs, --interactive has none"),
        (["--explain", "--show-next", "2"], "--explain tells how a text was drawn, --show-next prints none"),
        (["--explain", "--interactive"], "(in a session, type /explain)"),
        (["--speak-to", "x.wav", "--json"], "--speak-to speaks the text that is printed, --json prints none"),
    ],
)
def test_flags_that_do_not_go_together_are_named(generate: Generate, words: list[str], expected: str) -> None:
    code, out, err = generate(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_the_ten_next_tokens_are_a_table_for_every_prompt_and_json_on_request(generate: Generate) -> None:
    words = ["--prompt", "a", "--prompt", "武", "--show-next", "10"]
    code, out, err = generate(*words)
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("after")][1].startswith("after '武'")
    assert len(out.splitlines()) == 2 * (2 + 10)
    first, second = (json.loads(line) for line in generate(*words, "--json")[1].splitlines())
    assert (first["prompt"], second["prompt"]) == ("a", "武")
    assert len(second["next_tokens"]) == 10


def test_explain_prints_every_step_on_stderr_and_the_text_on_stdout(generate: Generate) -> None:
    words = ["--prompt", "a", "--max-new-tokens", "3", "--top-k", "4", "--seed", "2"]
    code, out, err = generate(*words, "--explain")
    assert (code, out) == (0, generate(*words)[1])
    assert err.startswith("order of processors: valid_utf8 → temperature=0.8 → top_k=4\n")
    assert err.count(" · step ") == 3
    (sample,) = (json.loads(line) for line in generate(*words, "--explain", "--json")[1].splitlines())
    assert [stage["name"] for stage in sample["steps"][0]["stages"]] == ["valid_utf8", "temperature=0.8", "top_k=4"]
    assert len(sample["steps"]) == 3


def test_a_plot_is_written_and_a_wrong_ending_refused_before_torch(generate: Generate, tmp_path: Path) -> None:
    path = tmp_path / "next.png"
    code, out, err = generate("--prompt", "a", "--plot", str(path))
    assert (code, out, err) == (0, "", f"note: the picture is in {path}\n")
    assert path.stat().st_size > 1000
    code, _, err = generate("--plot", str(path), "--prompt", "a", "--prompt", "b")
    assert (code, "--plot draws what follows one prompt, but 2 were given" in err) == (2, True)
    code, _, err = generate("--plot", "picture.jpeg")
    assert (code, "--plot must name a file that ends in .png or .svg or .pdf" in err) == (2, True)


def test_a_processor_and_a_criterion_of_the_users_own_work_from_the_command_line(
    generate: Generate, tmp_path: Path
) -> None:
    path = tmp_path / "my.py"
    path.write_text(
        "class Never:\n"
        "    stage = 'bans'\n"
        "    def __init__(self, letters, tokenizer):\n"
        "        self.banned = tokenizer.encode(letters)\n"
        "    def __call__(self, token_ids, logits, prompt_lengths):\n"
        "        logits = logits.clone()\n"
        "        logits[:, self.banned] = float('-inf')\n"
        "        return logits\n"
        "class Three:\n"
        "    reason = 'three'\n"
        "    def __call__(self, token_ids, texts):\n"
        "        return [len(row) == 3 for row in token_ids]\n"
    )
    words = ["--processor", f"{path}:Never(letters='xyz')", "--criterion", f"{path}:Three", "--json", "--prompt", "a"]
    (sample,) = (json.loads(line) for line in generate(*words)[1].splitlines())
    assert sample["processors"] == "valid_utf8 → Never → temperature=0.8"
    assert (sample["reason"], len(sample["token_ids"])) == ("three", 3)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_text_is_printed_and_spoken_into_a_file(generate: Generate, tmp_path: Path) -> None:
    pytest.importorskip("pyttsx3", reason="pyttsx3 is not installed")
    path = tmp_path / "out.wav"
    words = ["--prompt", "A fox hello.", "--max-new-tokens", "0"]
    assert generate(*words, "--speak-to", str(path)) == (
        0,
        "A fox hello.\n",
        f"note: the speech is in {path}\n",
    )
    assert path.read_bytes().startswith(b"RIFF")


def test_failing_speech_costs_a_line_and_never_the_text(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyttsx3.py").write_text("def init():\n    raise OSError('no engine here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = generate("--prompt", "One. Two.", "--max-new-tokens", "0", "--speak", "--speak-to", "out.wav")
    assert (code, out) == (0, "One. Two.\n")
    assert err.splitlines() == ["note: no speech: OSError: no engine here"] * 2


def test_an_interactive_session_answers_and_quits(checkpoint: Path) -> None:
    with start(checkpoint, "--interactive", "--max-new-tokens", "5") as process:
        out, err = process.communicate(b"/temperature 0\nhello\n/nonsense\n/quit\n", timeout=60)
    assert process.returncode == 0
    assert out.decode().startswith("> > ")
    assert b"unknown command /nonsense" in err
