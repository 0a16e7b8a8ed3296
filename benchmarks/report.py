"""Run one question and keep its answer: benchmarks/results/<question>.json."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import git_commit, hardware, versions
from benchmarks.measuring import Comparison, Target
from command_line import ArgumentParser, add_options, check_options, given_options, option, run_program

RESULTS_FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class BenchmarkConfig:
    """What every question may be asked with."""

    quick: bool = option(False, "smoke test: as little as possible, prints, writes no result", group="benchmark")
    rounds: int | None = option(None, "turns of every contender (default: by question)", at_least=1)
    nanogpt: str | None = option(
        None, "folder of a nanoGPT checkout; without it, comparisons with nanoGPT are left out", metavar="FOLDER"
    )
    first_seed: int = option(0, "seed of the first trial, where trials are counted; more than 0 goes on", at_least=0)
    text: str | None = option(None, "a text file, where the question needs one (tinyshakespeare)", metavar="FILE")

    def __post_init__(self) -> None:
        check_options(self)

    def turns(self, usual: int) -> int:
        """Rounds to measure: as asked for, else the question's usual number, else one when quick."""
        return self.rounds or (1 if self.quick else usual)


@dataclass(frozen=True)
class Report:
    """The answer to one question; `notes` say what a number alone would not."""

    question: str
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Further measurements, as plain data."""


def report_to_dict(report: Report) -> dict[str, Any]:
    """A report as plain data, its medians and ratios worked out for readers of the file."""
    comparisons = [
        {
            **dataclasses.asdict(comparison),
            "median_ours": statistics.median(comparison.ours),
            "median_theirs": statistics.median(comparison.theirs),
            "ratio": comparison.ratio,
            "ratio_lowest": min(comparison.ratios),
            "ratio_highest": max(comparison.ratios),
            "is_met": comparison.is_met,
        }
        for comparison in report.comparisons
    ]
    return {**dataclasses.asdict(report), "comparisons": comparisons}


def report_from_dict(values: dict[str, Any]) -> Report:
    """Rebuild a report from its file; everything that was worked out is worked out again."""
    comparisons = [
        Comparison(
            measure=entry["measure"],
            unit=entry["unit"],
            peer=entry["peer"],
            ours=entry["ours"],
            theirs=entry["theirs"],
            target=Target(**entry["target"]) if entry["target"] else None,
        )
        for entry in values["comparisons"]
    ]
    return Report(values["question"], comparisons, values["notes"], values["facts"])


def run_benchmark(name: str, about: str, answer: Callable[[BenchmarkConfig], Report]) -> None:
    """The `main` of every question: flags → config → answer → print → results/<name>.json."""

    def main() -> None:
        parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
        add_options(parser, BenchmarkConfig, "benchmark")
        config = BenchmarkConfig(**given_options(parser.parse(), BenchmarkConfig))
        commit = git_commit()  # before the measurement, which may outlast a commit
        report = answer(config)
        for line in [*map(str, report.comparisons), *report.notes]:
            print(line)
        if config.quick:
            print("quick: nothing written")
        else:
            path = write_report(report, name, RESULTS_FOLDER, commit=commit, flags=sys.argv[1:])
            print(f"written to {path}")

    run_program(main)


def write_report(report: Report, name: str, folder: Path, *, commit: str, flags: list[str]) -> Path:
    """Write a report with what it depends on; folders that were named by flags are left out of the command."""
    command = [f"python -m benchmarks.{name}"]
    for flag in flags:
        command.append("PATH" if Path(flag).is_absolute() or Path(flag).exists() else flag)
    record = {
        **report_to_dict(report),
        "command": " ".join(command),
        "date": date.today().isoformat(),
        "commit": commit,
        "hardware": hardware(),
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
