"""Real training runs under `kill -9`, by the harness of benchmarks/killed_runs.py, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent


def tally_of(folder: Path, n_trials: int, first_seed: int) -> dict[str, object]:
    program = (
        "import json, sys, torch; from pathlib import Path; from benchmarks.killed_runs import kill_our_runs;"
        "torch.set_num_threads(1); tally = kill_our_runs(int(sys.argv[2]), Path(sys.argv[1]), int(sys.argv[3]));"
        "print(json.dumps(vars(tally)))"
    )
    command = [sys.executable, "-c", program, str(folder), str(n_trials), str(first_seed)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    tally: dict[str, object] = json.loads(result.stdout)
    return tally


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_sixty_killed_runs_lose_nothing_and_end_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    tally = tally_of(tmp_path, 60, 0)
    assert tally["lost"] == []
    assert tally["trials"] == 60
    assert isinstance(tally["kills_in_save"], int)
    assert tally["kills_in_save"] >= 5  # else the kills missed what they were aimed at
