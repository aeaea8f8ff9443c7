"""`python -m runner check JOBS`: what a run would be, without sending anything.

Every line is parsed as a run would parse it; tokens are those that admission would reserve, so cost and duration are
upper estimates where lines cap their output, and guesses where they don't.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Final

from runner import tokens
from runner.costs import cost_of
from runner.escape import for_line
from runner.jobs import Job, Rejected
from runner.outcome import Usage
from runner.progress import duration
from runner.reservation import BEFORE_ANY
from runner.settings import ModelLimits, Settings, limits_of
from runner.source import JobSource
from runner.terminal import Outlet
from runner.tickets import Need

_SHOWN: Final = 20


@dataclass(slots=True)
class Load:
    """What jobs under the same limits amount to."""

    limits: ModelLimits
    jobs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, found: Need) -> None:
        """Counts one job."""
        self.jobs += 1
        self.input_tokens += found.input_tokens
        self.output_tokens += found.output_tokens

    @property
    def minutes(self) -> float | None:
        """How long the limits make them last at least; None without limits."""
        limits, both = self.limits, self.input_tokens + self.output_tokens
        per_minute = (
            (self.jobs, limits.rpm),
            (both, limits.tpm),
            (self.input_tokens, limits.input_tpm),
            (self.output_tokens, limits.output_tpm),
        )
        return max((amount / limit for amount, limit in per_minute if limit is not None), default=None)


@dataclass(slots=True)
class Check:
    """What was found."""

    apis: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    without_model: int = 0
    never_fit: int = 0
    not_served: int = 0
    """Jobs for models that none of the endpoints serves."""
    input_tokens: int = 0
    output_tokens: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0
    unpriced: int = 0
    loads: dict[tuple[str, ...], Load] = field(default_factory=dict)
    """By group of models that share limits, at each endpoint."""
    shown: list[str] = field(default_factory=list)
    """The first few lines that can't be jobs."""

    @property
    def jobs(self) -> int:
        """Lines that can be jobs."""
        return self.apis.total()

    @property
    def ok(self) -> bool:
        """Whether every line would be sent."""
        return not (self.rejected or self.never_fit or self.not_served)

    def add(self, item: Job | Rejected, settings: Settings) -> None:
        """Counts one line."""
        if isinstance(item, Rejected):
            self.rejected += 1
            if len(self.shown) < _SHOWN:
                self.shown.append(item.reason)
            return
        self.apis[item.api.value] += 1
        model = item.body.get("model", settings.model)
        self.without_model += model is None
        default = BEFORE_ANY if settings.reserve_output_tokens is None else settings.reserve_output_tokens
        found, method = tokens.estimate(item, default_output_tokens=default)
        self.methods[method] += 1
        self.input_tokens += found.input_tokens
        self.output_tokens += found.output_tokens
        offers = _offers(model, settings)
        self.not_served += not offers
        self.loads.setdefault(tuple(name for name, _ in offers), Load(_together(offers))).add(found)
        widest = max((limits.tpm or math.inf for _, limits in offers), default=math.inf)
        # A guess at the output is cut to what fits.
        least = found.input_tokens + (1 if found.guessed else found.output_tokens)
        self.never_fit += least > min(widest, settings.tpm or math.inf)
        cost = cost_of(Usage(found.input_tokens, found.output_tokens), model, settings.prices)
        self.cost += cost or 0.0
        self.unpriced += cost is None

    def minutes(self, settings: Settings) -> float | None:
        """How long the limits make it last at least; None without limits."""
        whole = Load(ModelLimits(rpm=settings.rpm, tpm=settings.tpm), self.jobs, self.input_tokens, self.output_tokens)
        return max([m for load in (whole, *self.loads.values()) if (m := load.minutes) is not None], default=None)


def _offers(model: str | None, settings: Settings) -> list[tuple[str, ModelLimits]]:
    """What each endpoint that serves a model allows it, with the name of the group that it is in there."""
    if not settings.endpoints:
        return [limits_of(model, settings.limits)]
    serving = [each for each in settings.endpoints if each.serves(model)]
    found = [(each, *limits_of(model, settings.limits_at(each))) for each in serving]
    return [
        (
            f"{each.name}/{name}",
            limits.model_copy(update={"rpm": _less(each.rpm, limits.rpm), "tpm": _less(each.tpm, limits.tpm)}),
        )
        for each, name, limits in found
    ]


def _less(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _together(offers: Sequence[tuple[str, ModelLimits]]) -> ModelLimits:
    """The sum of what is allowed; a limit that one of them hasn't is none."""
    sums = {}
    for name in ("rpm", "tpm", "input_tpm", "output_tpm"):
        parts = [getattr(limits, name) for _, limits in offers]
        sums[name] = None if not parts or None in parts else sum(parts)
    return ModelLimits(**sums)


async def check(paths: Sequence[str], settings: Settings) -> Check:
    """Reads the whole input.

    Raises:
        InputError: a file can't be read.
    """
    found = Check()
    async for batch in JobSource(paths).batches():
        for item in batch:
            found.add(item, settings)
    return found


def report(found: Check, settings: Settings, out: IO[str] | Outlet) -> None:
    """Prints it for a person."""
    for reason in found.shown:
        out.write(f"{for_line(reason)}\n")
    if found.rejected > len(found.shown):
        out.write(f"… and {found.rejected - len(found.shown):,} more lines that can't be jobs\n")
    apis = ", ".join(f"{count:,} {api}" for api, count in found.apis.most_common())
    out.write(f"jobs          {found.jobs:,}" + (f" ({apis})" if apis else "") + "\n")
    out.write(f"can't be jobs {found.rejected:,}\n")
    if found.never_fit:
        out.write(f"never fit     {found.never_fit:,} need more tokens than --tpm gives in a minute\n")
    if found.not_served:
        out.write(f"not served    {found.not_served:,} are for models that no endpoint serves\n")
    if found.without_model:
        out.write(f"no model      {found.without_model:,} name none: give --model, or the server may refuse them\n")
    methods = " and ".join(sorted(found.methods)) or "nothing to count"
    out.write(f"tokens        {found.input_tokens:,} in (by {methods}), {found.output_tokens:,} out reserved\n")
    if settings.prices:
        unpriced = f", without {found.unpriced:,} jobs of unknown price" if found.unpriced else ""
        out.write(f"cost          about {found.cost:,.2f} at most{unpriced}\n")
    minutes = found.minutes(settings)
    out.write(f"duration      {'at least ' + duration(60 * minutes) if minutes is not None else 'no limits given'}\n")
