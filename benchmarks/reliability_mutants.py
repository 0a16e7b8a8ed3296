"""Do the reliability tests notice when a safeguard is missing? Each is taken out of the source in turn.

Every mutant is one change of the source in a copy of the project. It is caught when the reliability tests fail there;
they pass on the unchanged copy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import PROJECT
from benchmarks.report import BenchmarkConfig, Report, run_benchmark


@dataclass(frozen=True)
class Mutant:
    """One safeguard taken out: a piece of a file's source and what stands there instead."""

    safeguard: str
    file: str
    source: str
    replacement: str


DISK, READER, WRITER = "model/durable_files.py", "model/checkpoint_reader.py", "model/checkpoint_writer.py"
CHECKPOINT, RUN, TRAINER = "model/checkpoint.py", "training/run_state.py", "training/trainer.py"

DAMAGE, CRASH, FOLDER = "model/test_checkpoint_damage", "training/test_crash_safety", "training/test_run_state"
FORMAT, RESUME, LOOP = "model/test_checkpoint", "training/test_resume_exact", "training/test_trainer"
TESTS = {
    DISK: (CRASH, FOLDER, DAMAGE),
    READER: (FORMAT, DAMAGE),
    WRITER: (FORMAT,),
    CHECKPOINT: (FORMAT, FOLDER, DAMAGE),
    RUN: (FOLDER, CRASH),
    TRAINER: (LOOP, RESUME),
}
"""Which tests are there to guard which file."""

MUTANTS = (
    Mutant("sync the file", DISK, "            sync(file)\n", ""),
    Mutant("sync the folder", DISK, "        sync_folder(path.parent)\n    except", "    except"),
    Mutant("a temporary name", DISK, "with create(temporary) as",
           "temporary = path\n        with open(path, 'wb', 0) as"),
    Mutant("rename in one step", DISK, "    source.replace(target)", "    unlink(target)\n    source.replace(target)"),
    Mutant("read back before renaming", DISK, "            verify(temporary, result)\n", "            pass\n"),
    Mutant("remove the half-written file", DISK, "            unlink(temporary)\n", "            pass\n"),
    Mutant("report the disk's error", DISK, "        if isinstance(error, OSError):\n", "        if False:\n"),
    Mutant("only regular files", DISK, "    if not stat.S_ISREG(", "    if False and not stat.S_ISREG("),
    Mutant("write all of it", DISK, "        view = view[written:]", "        view = view[len(view):]"),
    Mutant("compare what was read back", CHECKPOINT, "if reader.verify() != sha256:", "if False:"),
    Mutant("check what is saved", CHECKPOINT, "        _check_content(card)  # what", "        # what"),
    Mutant("check free space", CHECKPOINT, "    if free < n_bytes:", "    if False:"),
    Mutant("verify before loading", CHECKPOINT, "        sha256 = reader.verify()\n        card = reader.read_card()\n"
           "        config = _check",
           "        sha256 = ''\n        card = reader.read_card()\n        config = _check"),
    Mutant("the newest by what the files say", CHECKPOINT, "max(card.saved_at for card in models)",
           "(run / BEST).stat().st_mtime"),
    Mutant("verify the newest run", CHECKPOINT, "                verify_checkpoint(path)\n", "                pass\n"),
    Mutant("weights that fit the config", CHECKPOINT, '        if kind == "gpt" and weights:', "        if False:"),
    Mutant("no absurd sizes", CHECKPOINT, "    if config.n_layer > len(state_dict) or any(", "    if False and any("),
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
    Mutant("lock the folder", RUN, "if not durable_files.try_lock(lock):", "if False:"),
    Mutant("free the lock in workers", RUN, "            os.register_at_fork(", "            (lambda **hooks: None)("),
    Mutant("verify the newest step", RUN, "                checkpoint = load_checkpoint(path)\n",
           "                checkpoint = load_checkpoint(path)\n                return checkpoint\n"),
    Mutant("fall back to an older one", RUN, "                damaged += 1\n", "                raise\n"),
    Mutant("all damaged is no fresh start", RUN, "        if damaged:\n", "        if False:\n"),
    Mutant("save before deleting", RUN, "        path = step_path(self.path, step)\n",
           "        path = step_path(self.path, step)\n        self.prune(0)\n"),
    Mutant("damaged ones do not count", RUN, "elif path in self._verified or _verifies(path):", "else:"),
    Mutant("keep the old run until the new one is safe", RUN,
           "        return cls(path, lock, [file for file in old if file.suffix == \".pt\"] if overwrite else [])",
           "        if overwrite:\n            for file in old:\n                file.unlink(missing_ok=True)\n"
           "        return cls(path, lock, [])"),
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


def answer(config: BenchmarkConfig) -> Report:
    """Run the tests on the unchanged copy, then on every mutant."""
    verdicts: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignore = shutil.ignore_patterns(".git", ".venv", "runs", "corpora", "tokens", "*_cache", "__pycache__", "*.pt")
        shutil.copytree(PROJECT, copy, ignore=ignore)
        shutil.copytree(PROJECT / "tests" / "fixtures", copy / "tests" / "fixtures", dirs_exist_ok=True)
        verdicts["nothing taken out"] = caught_by(
            copy, dict.fromkeys(test for tests in TESTS.values() for test in tests)
        )
        for mutant in MUTANTS[: 2 if config.quick else None]:
            path = copy / mutant.file
            source = path.read_text(encoding="utf-8")
            if source.count(mutant.source) < 1:
                raise ValueError(f"{mutant.file} does not contain {mutant.source!r}: {mutant.safeguard}")
            path.write_text(source.replace(mutant.source, mutant.replacement, 1), encoding="utf-8")
            verdicts[mutant.safeguard] = caught_by(copy, TESTS[mutant.file])
            path.write_text(source, encoding="utf-8")
            print(f"{mutant.safeguard}: {verdicts[mutant.safeguard] or 'NOT NOTICED'}", flush=True)
    unchanged = verdicts.pop("nothing taken out")
    missed = [safeguard for safeguard, test in verdicts.items() if test is None]
    notes = [
        f"unchanged: {unchanged or 'all tests pass'}",
        f"{len(verdicts)} safeguards taken out, {len(verdicts) - len(missed)} noticed; not noticed: {missed or 'none'}",
    ]
    return Report("Do the tests notice a missing safeguard?", [], notes, {"caught by": verdicts})


if __name__ == "__main__":
    run_benchmark("reliability_mutants", str(__doc__), answer)
