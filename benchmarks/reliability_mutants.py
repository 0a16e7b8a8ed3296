"""Do the reliability tests notice when a safeguard is missing? Each is taken out of the source in turn.

Every mutant is one change of the source in a copy of the project. It is caught when the reliability tests fail there;
they pass on the unchanged copy. In parts: `--rounds 10`, then `--rounds 10 --first-seed 10`, and so on; each part is
added to the result of those before it. Behind the last one, `--first-seed 51`, those that nobody noticed come again.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import PROJECT
from benchmarks.report import RESULTS_FOLDER, BenchmarkConfig, Report, run_benchmark
from command_line import UserError

QUESTION = "reliability_mutants"
N_COPIES = 2
"""Mutants that are tested at a time, each in a copy of its own."""


@dataclass(frozen=True)
class Mutant:
    """One safeguard taken out: a piece of a file's source and what stands there instead."""

    safeguard: str
    file: str
    source: str
    replacement: str


DISK, READER, WRITER = "model/durable_files.py", "model/checkpoint_reader.py", "model/checkpoint_writer.py"
CHECKPOINT, CHOICE, CONTENT = "model/checkpoint.py", "model/checkpoint_choice.py", "model/checkpoint_content.py"
RUN, LOCK, TRAINER = "training/run_state.py", "training/run_lock.py", "training/trainer.py"
SHARDS, PREPARE, PARTS = "data/shards.py", "data/prepare.py", "training/prepared_run.py"

DAMAGE, CRASH, FOLDER = "model/test_checkpoint_damage", "training/test_crash_safety", "training/test_run_state"
FORMAT, RESUME, LOOP = "model/test_checkpoint", "training/test_resume_exact", "training/test_trainer"
TESTS = {
    DISK: (CRASH, FOLDER, DAMAGE),
    READER: (FORMAT, DAMAGE),
    WRITER: (FORMAT,),
    CHECKPOINT: (FORMAT, FOLDER, DAMAGE),
    CHOICE: (FORMAT, FOLDER),
    CONTENT: (FORMAT, FOLDER, DAMAGE),
    RUN: (FOLDER, CRASH),
    LOCK: (FOLDER,),
    TRAINER: (LOOP, RESUME),
    SHARDS: ("data/test_shards",),
    PREPARE: ("data/test_prepare",),
    PARTS: ("test_train",),
}
"""Which tests are there to guard which file."""

MUTANTS = (
    Mutant("sync the file", DISK, "            sync(file)\n", ""),
    Mutant("sync the folder", DISK, "        sync_folder(path.parent)\n    except", "    except"),
    Mutant("sync the folder above", DISK, "    sync_folder(folder.parent)\n", ""),
    Mutant("a temporary name", DISK, "with create(temporary) as",
           "temporary = path\n        with open(path, 'wb', 0) as"),
    Mutant("rename in one step", DISK, "    source.replace(target)", "    unlink(target)\n    source.replace(target)"),
    Mutant("read back before renaming", DISK, "            verify(temporary, result)\n", "            pass\n"),
    Mutant("remove the half-written file", DISK, "            unlink(temporary)\n", "            pass\n"),
    Mutant("report the disk's error", DISK, "        if isinstance(error, OSError):\n", "        if False:\n"),
    Mutant("only regular files", DISK, "    if not stat.S_ISREG(", "    if False and not stat.S_ISREG("),
    Mutant("write all of it", DISK, "        view = view[written:]", "        view = view[len(view):]"),
    Mutant("compare what was read back", CHECKPOINT, "if reader.verify() != sha256:", "if False:"),
    Mutant("check what is saved", CHECKPOINT, "        check_content(card)  # what", "        # what"),
    Mutant("check free space", CHECKPOINT, "    if free < n_bytes:", "    if False:"),
    Mutant("verify before loading", CHECKPOINT, "        sha256 = reader.verify()\n        card = reader.read_card()\n"
           "        config = check",
           "        sha256 = ''\n        card = reader.read_card()\n        config = check"),
    Mutant("the newest by what the files say", CHOICE, "max(card.saved_at for card in models)",
           "(run / BEST).stat().st_mtime"),
    Mutant("verify the newest run", CHOICE, "                verify_checkpoint(path)\n", "                pass\n"),
    Mutant("weights that fit the config", CONTENT, '        if kind == "gpt" and weights:', "        if False:"),
    Mutant("no absurd sizes", CONTENT, "    if config.n_layer > len(state_dict) or any(", "    if False and any("),
    Mutant("compare the checksum", READER, 'if comment != f"sha256:', 'if False and comment != f"sha256:'),
    Mutant("a card of possible size", READER, "if info.compress_type != zipfile.ZIP_STORED or", "if False and"),
    Mutant("tensors do not overlap", READER, "if offset < free_from or", "if"),
    Mutant("tensors lie in the file", READER, " or offset + size > n_bytes - COMMENT_BYTES", ""),
    Mutant("shapes fit sizes", READER, "if math.prod(shape) * DTYPES[dtype][0] != size:", "if False:"),
    Mutant("refuse newer formats", READER, "if version > FORMAT_VERSION:", "if False:"),
    Mutant("store tied weights once", WRITER, "if tensor.numel() == 0 or view not in self._numbers:", "if True:"),
    Mutant("align the tensors", WRITER, "% ALIGNMENT\n", "% 1\n"),
    Mutant("plain data only", WRITER, "        raise TypeError(f\"a checkpoint holds tensors, str",
           "        return value\n        raise TypeError(f\"a checkpoint holds tensors, str"),
    Mutant("lock the folder", LOCK, "if not durable_files.try_lock(lock):", "if False:"),
    Mutant("free the lock in workers", LOCK, "            os.register_at_fork(", "            (lambda **hooks: None)("),
    Mutant("verify the newest step", RUN, "                checkpoint = load_checkpoint(path)\n",
           "                checkpoint = load_checkpoint(path)\n                return checkpoint\n"),
    Mutant("fall back to an older one", RUN, "                damaged += 1\n", "                raise\n"),
    Mutant("all damaged is no fresh start", RUN, "        if damaged:\n", "        if False:\n"),
    Mutant("save before deleting", RUN, "        path = step_path(self.path, step)\n",
           "        path = step_path(self.path, step)\n        self.prune(0)\n"),
    Mutant("damaged ones do not count", RUN, "elif path in self._verified or _verifies(path):", "else:"),
    Mutant("keep the old run until the new one is safe", RUN, "            old = _files_of_run(path)\n",
           "            old = _files_of_run(path)\n            for file in old if overwrite else []:\n"
           "                file.unlink()\n"),
    Mutant("the old run's files go", RUN, "        durable_files.unlink(old)\n", "        pass\n"),
    Mutant("remove leftovers", RUN, "            _remove_leftovers(path)\n", ""),
    Mutant("cut the logs back", RUN, "            if values[\"step\"] <= last:", "            if True:"),
    Mutant("restore the optimizer", TRAINER, "        self.optimizer.load_state_dict(",
           "        (lambda state: None)("),
    Mutant("restore the progress", TRAINER, "        self.done = RunProgress(**state[\"progress\"])\n",
           "        self.done = RunProgress(step=state[\"progress\"][\"step\"])\n"),
    Mutant("seed every step", TRAINER, "        torch.manual_seed((", "        ((lambda seed: None))(("),
    Mutant("check the loss before the update", TRAINER, "        self._check_finite(loss, step)\n", ""),
    Mutant("check the gradient", TRAINER, "math.isfinite(loss) and math.isfinite(norm.item())", "math.isfinite(loss)"),
    Mutant("save again after the last evaluation", TRAINER, "return self.done.step, self.done.evaluated_step",
           "return self.done.step, 0"),
    Mutant("compare the tokens' checksum", SHARDS, "if digest.hexdigest() != header.payload_sha256:", "if False:"),
    Mutant("compare the header's checksum", SHARDS, "if hashlib.sha256(raw[:-32]).digest() != raw[-32:]:", "if False:"),
    Mutant("token files of the right size", SHARDS, "if size != expected:", "if False:"),
    Mutant("ids within the vocabulary", SHARDS, "if largest >= vocab_size:", "if False:"),
    Mutant("token files that belong together", SHARDS, "if [header.first for header in self.headers] !=", "if None =="),
    Mutant("verify what was prepared before", PREPARE, "            if was_cached:\n", "            if False:\n"),
    Mutant("the corpus that the run began with", PARTS, 'if corpus.corpus_hash != state["corpus_hash"]:', "if False:"),
    Mutant("the flags that the run began with", PARTS, "if value != of_run[name]:", "if False:"),
)  # fmt: skip


def caught_by(project: Path, tests: Iterable[str]) -> str | None:
    """The first of the tests that fails in a copy of the project, None when all pass."""
    files = [f"tests/{name}.py" for name in tests]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *files,
    ]
    output = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=900)
    if output.returncode == 0:
        return None
    failed = [line for line in output.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else output.stdout[-300:] + output.stderr[-300:]


def earlier_verdicts(n_mutants: int) -> dict[str, str | None]:
    """What the result file says of the first mutants; raises UserError unless it holds just those."""
    path = RESULTS_FOLDER / f"{QUESTION}.json"
    found: dict[str, str | None] = {}
    if n_mutants and path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["facts"]["caught by"]
    if len(found) != n_mutants:
        raise UserError(f"{path.name} holds {len(found)} mutants; go on with --first-seed {len(found)}")
    return found


def copy_project(copy: Path) -> Path:
    """A copy of the project with its tests, to break."""
    ignore = shutil.ignore_patterns(".git", ".venv", "runs", "corpora", "tokens", "*_cache", "__pycache__", "*.pt")
    shutil.copytree(PROJECT, copy, ignore=ignore)
    shutil.copytree(PROJECT / "tests" / "fixtures", copy / "tests" / "fixtures", dirs_exist_ok=True)
    return copy


def every_test(mutants: Iterable[Mutant]) -> Iterable[str]:
    """All tests that guard against any of these."""
    return dict.fromkeys(test for mutant in mutants for test in TESTS[mutant.file])


def verdict_on(mutant: Mutant, copy: Path) -> str | None:
    """The first test that fails once a safeguard is taken out of a copy, which is as before afterwards."""
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.source) < 1:
        raise ValueError(f"{mutant.file} does not contain {mutant.source!r}: {mutant.safeguard}")
    path.write_text(source.replace(mutant.source, mutant.replacement, 1), encoding="utf-8")
    found = caught_by(copy, TESTS[mutant.file])
    path.write_text(source, encoding="utf-8")
    print(f"{mutant.safeguard}: {found or 'NOT NOTICED'}", flush=True)
    return found


def answer(config: BenchmarkConfig) -> Report:
    """Run the tests on the unchanged copy, then on every mutant of this part."""
    verdicts = earlier_verdicts(config.first_seed)
    missed = [mutant for mutant in MUTANTS if verdicts.get(mutant.safeguard, "") is None]
    left = MUTANTS[config.first_seed :] if config.first_seed < len(MUTANTS) else missed
    chosen = left[: 2 if config.quick else config.rounds]
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(N_COPIES):
            copies.put(copy_project(Path(folder) / f"project-{number}"))

        def verdict(mutant: Mutant | None) -> str | None:
            copy = copies.get()
            try:
                return verdict_on(mutant, copy) if mutant else caught_by(copy, every_test(chosen))
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(N_COPIES) as workers:
            failed, *found = workers.map(verdict, [None, *chosen])
    if failed is not None:
        raise UserError(f"nothing is taken out and {failed} fails; mend that first")
    verdicts.update(zip((mutant.safeguard for mutant in chosen), found, strict=True))
    silent = [safeguard for safeguard, test in verdicts.items() if test is None]
    notes = [
        f"{len(verdicts)} safeguards taken out, {len(verdicts) - len(silent)} noticed; not noticed: {silent or 'none'}"
    ]
    return Report("Do the tests notice a missing safeguard?", [], notes, {"caught by": verdicts})


if __name__ == "__main__":
    run_benchmark(QUESTION, str(__doc__), answer)
