"""Which discriminators steer the text and how strongly, as one frozen dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from command_line import UserError, check_options, flag_name, option


@dataclass(frozen=True)
class GuidanceConfig:
    """Discriminators with their strengths; raises UserError when they do not match."""

    discriminator: tuple[str, ...] = option(
        (),
        "steer towards the first label of this discriminator, or towards LABEL; may be given several times",
        group="guidance",
        metavar="FILE[:LABEL]",
    )
    guidance_strength: tuple[float, ...] = option(
        (),
        "how strongly: 1 is Bayes' rule, more is stronger, negative leads away; one for each --discriminator "
        "(default: 1)",
        at_least=-1000,
        at_most=1000,
        metavar="λ",
    )
    guidance_candidates: int = option(50, "most probable tokens among which guidance chooses", at_least=1)
    guidance_mode: Literal["exact", "fast"] = option(
        "exact", "exact: every candidate goes through the discriminator; fast: one small product guesses them all"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if len(self.guidance_strength) not in (0, len(self.discriminator)):
            raise UserError(
                f"--guidance-strength is given {len(self.guidance_strength)} times for {len(self.discriminator)} "
                "--discriminator; give one for each, in the same order"
            )

        if not self.discriminator:
            for field in dataclasses.fields(self):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"{flag_name(field.name)} needs a --discriminator")

    @property
    def strengths(self) -> tuple[float, ...]:
        """λ of each discriminator."""
        return self.guidance_strength or (1.0,) * len(self.discriminator)
