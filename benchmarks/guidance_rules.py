"""How far does guidance carry attributes that a program checks: a rare topic, a question, an end in time?

Everything drawn is kept in checkpoints/benchmark-guidance/, so that an interrupted run goes on where it stood.
"""

from __future__ import annotations

from benchmarks.guidance import N_TEXTS, report_on
from benchmarks.report import BenchmarkConfig, Report, run_benchmark


def answer(config: BenchmarkConfig) -> Report:
    """Train guides from samples that the rules label, draw all arms, measure them alike; the judge is the rule."""
    from benchmarks.guidance_study import Study

    study = Study(12 if config.quick else N_TEXTS, quick=config.quick)
    return report_on(study, study.rules(), config, "guidance_rules")


if __name__ == "__main__":
    run_benchmark("guidance_rules", __doc__, answer)
