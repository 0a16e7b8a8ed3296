"""Results survive their file, and the table says what they say."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.measuring import Comparison, Target
from benchmarks.report import BenchmarkConfig, Report, report_from_dict, write_report
from benchmarks.tables import (
    BEGIN_MARKER,
    END_MARKER,
    guidance_tables,
    load_records,
    markdown_table,
    replace_marked_part,
)
from command_line import UserError

REPORT = Report(
    question="Which is faster?",
    comparisons=[
        Comparison("training", "tokens/s", "nanoGPT", [30.0, 20.0, 40.0], [10.0, 10.0, 10.0], Target("at least", 2)),
        Comparison("help", "s", "python -c pass", [0.5], [0.05], Target("at most", 8)),
    ],
    notes=["a note"],
    facts={"n": 1},
)


def write(folder: Path, flags: tuple[str, ...] = ()) -> Path:
    return write_report(REPORT, "speed", folder, commit="abc", flags=list(flags))


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    record = json.loads(write(tmp_path).read_text(encoding="utf-8"))
    assert report_from_dict(record) == REPORT


def test_a_file_holds_medians_ratio_and_spread_for_other_readers(tmp_path: Path) -> None:
    training = json.loads(write(tmp_path).read_text(encoding="utf-8"))["comparisons"][0]
    assert (training["median_ours"], training["median_theirs"]) == (30, 10)
    assert (training["ratio"], training["ratio_lowest"], training["ratio_highest"]) == (3, 2, 4)
    assert training["is_met"] is True


def test_a_file_names_command_commit_hardware_and_versions_but_no_folder(tmp_path: Path) -> None:
    record = json.loads(write(tmp_path, ("--nanogpt", str(tmp_path), "--rounds", "3")).read_text(encoding="utf-8"))
    assert record["command"] == "python -m benchmarks.speed --nanogpt PATH --rounds 3"
    assert record["commit"] == "abc"
    assert record["hardware"]["cores"] >= 1
    assert record["versions"].keys() >= {"python", "torch", "numpy"}
    assert str(tmp_path) not in json.dumps(record)


def test_the_table_has_a_row_for_every_comparison(tmp_path: Path) -> None:
    write(tmp_path)
    lines = markdown_table(load_records(tmp_path)).splitlines()
    assert lines[2] == "| training | 30 tokens/s | nanoGPT: 10 | **3 ×** (2 to 4) | ≥ 2 × | met |"
    assert lines[3] == "| help | 0.5 s | python -c pass: 0.05 | **10 ×** | ≤ 8 × | missed |"
    assert any("`python -m benchmarks.speed`" in line for line in lines)


def test_results_of_two_machines_name_theirs_by_number(tmp_path: Path) -> None:
    here = json.loads(write(tmp_path).read_text(encoding="utf-8"))
    there = {**here, "hardware": {**here["hardware"], "cores": 1000}}
    lines = markdown_table([here, there]).splitlines()
    assert lines[2].startswith("| training [1] |")
    assert lines[4].startswith("| training [2] |")
    assert any(line.startswith("[2] Measured on ") and "1000 cores" in line for line in lines)


def test_every_way_of_guidance_is_a_row_under_its_attribute() -> None:
    arm = {
        "name": "exact 2",
        "n_texts": 500,
        "rate": 0.784,
        "rate_interval": [0.746, 0.8181],
        "perplexity_ratio": 0.974,
        "distinct_3_ratio": 0.966,
        "repetition_4": 0.0,
        "speed_ratio": 0.309,
    }
    lines = guidance_tables({"facts": {"arms": {"asks_a_question": [arm, {**arm, "name": "best of 16"}]}}}).splitlines()
    assert lines[0] == "**asks a question**"
    assert lines[4] == "| exact, λ = 2 | 500 | 78.4% | 74.6% to 81.8% | 0.974 × | 0.966 × | 0.000 | 0.31 × |"
    assert lines[5].startswith("| best of 16 | 500 |")


def test_only_the_marked_part_of_a_readme_is_replaced() -> None:
    text = f"before\n{BEGIN_MARKER}\nold\n{END_MARKER}\nafter\n"
    changed = replace_marked_part(text, "new\n")
    assert changed == f"before\n{BEGIN_MARKER}\n\nnew\n\n{END_MARKER}\nafter\n"
    assert replace_marked_part(changed, "new\n") == changed


@pytest.mark.parametrize("text", ["", BEGIN_MARKER, END_MARKER, f"{END_MARKER} {BEGIN_MARKER}"])
def test_a_readme_without_markers_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="needs the lines"):
        replace_marked_part(text, "new")


def test_an_empty_folder_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m benchmarks\.start_up"):
        load_records(tmp_path)


def test_turns_are_those_asked_for_then_one_when_quick_then_the_usual() -> None:
    assert BenchmarkConfig(rounds=4, quick=True).turns(7) == 4
    assert BenchmarkConfig(quick=True).turns(7) == 1
    assert BenchmarkConfig().turns(7) == 7


def test_every_comparison_in_the_project_has_its_row() -> None:
    records = load_records()
    for record in records:
        assert {"command", "commit", "hardware", "versions"} <= record.keys()
    rows = sum(len(record["comparisons"]) for record in records)
    assert markdown_table(records).count("\n| ") == rows


def test_results_of_another_kind_are_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "other.json").write_text('{"killed": 3}', encoding="utf-8")
    assert len(load_records(tmp_path)) == 1


def test_samples_are_shown_with_what_they_copied(tmp_path: Path) -> None:
    samples = [{"text": "The fox ran home.", "longest_copy": " ran home", "longest_copy_characters": 9}]
    report = dataclasses.replace(REPORT, facts={"samples": samples})
    write_report(report, "question", tmp_path, commit="abc", flags=[])
    table = markdown_table(load_records(tmp_path))
    assert "> The fox ran home.\n\n(longest copy from the training text: 9 characters, “ran home”)" in table
