"""The tables of results, made from benchmarks/results/*.json: `python -m benchmarks.tables`.

With `--readme README.md` and `--guidance docs/guidance.md`, the text between the two marker lines there is replaced.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Comparison
from benchmarks.report import RESULTS_FOLDER, report_from_dict
from command_line import ArgumentParser, UserError, add_options, check_options, given_options, option, run_program

BEGIN_MARKER = "<!-- benchmarks: made by python -m benchmarks.tables -->"
END_MARKER = "<!-- end of benchmarks -->"


@dataclass(frozen=True)
class TablesConfig:
    """Where the tables go."""

    readme: str | None = option(
        None, "file that gets all comparisons (default: print them)", metavar="FILE", group="files with a marked part"
    )
    guidance: str | None = option(None, "file that gets all ways of guidance", metavar="FILE")

    def __post_init__(self) -> None:
        check_options(self)


def markdown_table(records: list[dict[str, Any]]) -> str:
    """All comparisons as one Markdown table, then what each measurement ran on."""
    places: dict[str, list[str]] = {}
    for record in records:
        places.setdefault(_place(record), []).append(f"`{record['command']}` ({record['date']}, {record['commit']})")
    numbers = {place: f"[{number}]" if len(places) > 1 else "" for number, place in enumerate(places, start=1)}
    lines = ["| what | this project | peer | ratio (lowest to highest) | target | |", "|---|---|---|---|---|---|"]
    for record in records:
        number = numbers[_place(record)]
        lines += [_row(comparison, number) for comparison in report_from_dict(record).comparisons]
    for place, commands in places.items():
        lines += ["", f"{numbers[place]} Measured on {place}:".strip(), "", *(f"- {command}" for command in commands)]
    for record in records:
        lines += _samples(record)
    return "\n".join(lines) + "\n"


def _samples(record: dict[str, Any]) -> list[str]:
    """What the trained model of a record wrote, each text with what it copied: a reader should judge for himself."""
    samples = record["facts"].get("samples", [])
    if not samples:
        return []
    lines = ["", f"The first {len(samples)} texts that the model of `{record['command']}` drew, none selected:"]
    for sample in samples:
        copied = f"longest copy from the training text: {sample['longest_copy_characters']} characters"
        lines += ["", f"> {sample['text']}", "", f"({copied}, “{sample['longest_copy'].strip()}”)"]
    return lines


def _row(comparison: Comparison, place: str) -> str:
    ours, theirs = statistics.median(comparison.ours), statistics.median(comparison.theirs)
    spread = f" ({min(comparison.ratios):.3g} to {max(comparison.ratios):.3g})" if len(comparison.ratios) > 1 else ""
    met = {True: "met", False: "missed", None: ""}[comparison.is_met]
    cells = [
        f"{comparison.measure} {place}".strip(),
        f"{ours:.4g} {comparison.unit}",
        f"{comparison.peer}: {theirs:.4g}",
        f"**{comparison.ratio:.3g} ×**{spread}",
        str(comparison.target or ""),
        met,
    ]
    return "| " + " | ".join(cells) + " |"


def guidance_tables(record: dict[str, Any]) -> str:
    """All ways of drawing texts that `benchmarks.guidance` compared, a Markdown table for each attribute."""
    lines = []
    for name, arms in record["facts"]["arms"].items():
        lines += [f"**{name.replace('_', ' ')}**", ""]
        lines += ["| way | texts | have it | 95 % interval | perplexity | distinct-3 | repetition | speed |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for arm in arms:
            way = re.sub(r"^(exact|fast) ", r"\1, λ = ", arm["name"])
            low, high = arm["rate_interval"]
            cells = [way, arm["n_texts"], f"{arm['rate']:.1%}", f"{low:.1%} to {high:.1%}"]
            cells += [f"{arm['perplexity_ratio']:.3f} ×", f"{arm['distinct_3_ratio']:.3f} ×"]
            cells += [f"{arm['repetition_4']:.3f}", f"{arm['speed_ratio']:.2f} ×"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _place(record: dict[str, Any]) -> str:
    machine, packages = record["hardware"], record["versions"]
    named = ", ".join(f"{name} {number}" for name, number in packages.items())
    instructions = ", ".join(machine["instructions"])
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
        + (f" ({instructions})" if instructions else "")
        + f", {machine['system']}; {named}"
    )


def replace_marked_part(text: str, table: str) -> str:
    """`text` with the lines between the markers replaced; raises UserError when there are no two markers."""
    before, begin, rest = text.partition(BEGIN_MARKER)
    _, end, after = rest.partition(END_MARKER)
    if not begin or not end:
        raise UserError(f"the file needs the lines {BEGIN_MARKER} and {END_MARKER}, one after the other")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def load_records(folder: Path = RESULTS_FOLDER) -> list[dict[str, Any]]:
    """All results in order of their names; raises UserError when there are none."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    records = [record for record in records if "comparisons" in record]  # other kinds of results tell themselves
    if not records:
        raise UserError(f"no results in {folder.name}/; run a question first, such as python -m benchmarks.start_up")
    return records


def main() -> None:
    """Flags → records → tables → printed or put into their files."""
    parser = ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    add_options(parser, TablesConfig, "table")
    config = TablesConfig(**given_options(parser.parse(), TablesConfig))
    records = load_records()
    table = markdown_table(records)
    if config.readme is not None:
        _replace("--readme", config.readme, table)
    if config.guidance is not None:
        guided = [record for record in records if "arms" in record["facts"]]
        if not guided:
            raise UserError("there is no result of guidance yet; run python -m benchmarks.guidance first")
        _replace("--guidance", config.guidance, guidance_tables(guided[0]))
    if config.readme is None and config.guidance is None:
        print(table, end="")


def _replace(flag: str, name: str, table: str) -> None:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{flag} must name a file, but is {name!r}")
    path.write_text(replace_marked_part(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
