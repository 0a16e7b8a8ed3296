"""Does guidance reach what was asked for, at what price in quality, variety and time?

Everything drawn is kept in checkpoints/benchmark-guidance/, so that an interrupted run goes on where it stood.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from benchmarks.measuring import Comparison, Target
from benchmarks.report import RESULTS_FOLDER, BenchmarkConfig, Report, run_benchmark

if TYPE_CHECKING:
    from benchmarks.guidance_study import Arm, Study

N_TEXTS = 500
GUIDED, GOLD = "exact", "rejection"


def answer(config: BenchmarkConfig) -> Report:
    """Train language model, guides and judge where they are missing, draw all arms, measure them alike."""
    from benchmarks.guidance_figure import plot_arms
    from benchmarks.guidance_study import Study

    study = Study(12 if config.quick else N_TEXTS, quick=config.quick)
    arms = {attribute.name: study.measure(attribute) for attribute in study.attributes()}
    comparisons = [comparison for name, of_name in arms.items() for comparison in targets(name, of_name)]
    if not config.quick:
        plot_arms(arms, RESULTS_FOLDER / "guidance.png")
    return Report(
        question="Does guidance reach what was asked for, at what price in quality, variety and time?",
        comparisons=comparisons,
        notes=notes(study),
        facts={
            "arms": {name: [asdict(arm) for arm in of_name] for name, of_name in arms.items()},
            "bright": study.first_bright_texts(),
            "judge_accuracy": {"whole tales": study.judge_accuracy[0], "beginnings": study.judge_accuracy[1]},
            "discriminators": study.held_out_quality(),
        },
    )


def notes(study: Study) -> list[str]:
    """What the numbers alone do not say."""
    whole, beginnings = study.judge_accuracy
    return [
        "language model: `" + study.language_model_command + "`; texts of at most 64 tokens from an empty prompt, "
        "temperature 1, top-k 50 in every arm",
        f"the judge of the mood, trained on the half of the tales that the guide never saw, is right on {whole:.1%} of "
        f"whole held-out tales and {beginnings:.1%} of their first 64 tokens; the other attributes are judged by rule",
        "perplexity: a GPT of another seed and tokenizer, trained on that other half, per token of the language model",
        "speed: tokens that are kept per second of processor time, which other programs on the machine disturb less",
        "best of N: ranked by the guide; rejection: all of a pool of unguided texts that the judge or rule accepts",
    ]


def targets(name: str, arms: list[Arm]) -> list[Comparison]:
    """The guided arm of the lowest strength that reaches the wanted rate, else of the highest rate, against targets."""
    wanted = {"gloomy": 0.95, "asks_a_question": 0.9, "ends_with_a_sentence": 0.9, "tells_of_the_sea": 0.6}[name]
    limit = 1.2 if name == "gloomy" else 1.5
    by_name = {arm.name: arm for arm in arms}
    exact = [arm for arm in arms if arm.name.startswith(GUIDED)]
    chosen = next((arm for arm in exact if arm.rate >= wanted), max(exact, key=lambda arm: arm.rate))
    label = f"{name}, {chosen.name}"

    def one(measure: str, unit: str, peer: str, own: float, other: float, target: Target | None) -> Comparison:
        return Comparison(f"{label}: {measure}", unit, peer, [own], [other], target)

    base, best, gold = by_name["unguided"], by_name["best of 16"], by_name[GOLD]
    bayes = by_name[f"{GUIDED} 1"]
    at_least = Target("at least", 1)
    return [
        one("texts that have it", "%", "wanted", 100 * chosen.rate, 100 * wanted, at_least),
        one("texts that have it", "%", "best of 16", 100 * chosen.rate, 100 * best.rate, at_least),
        one("perplexity", "of unguided", "unguided", chosen.perplexity_ratio, 1, Target("at most", limit)),
        one("distinct-3", "of unguided", "unguided", chosen.distinct_3_ratio, 1, Target("at least", 0.97)),
        one("tokens/s", "of unguided", "unguided", chosen.speed_ratio, base.speed_ratio, None),
        Comparison(
            f"{name}, {bayes.name}: perplexity",
            "of unguided",
            "rejection (gold)",
            [bayes.perplexity_ratio],
            [gold.perplexity_ratio],
            Target("at most", 1.1),
        ),
    ]


if __name__ == "__main__":
    run_benchmark("guidance", __doc__, answer)
