"""A level over time: what was in flight and what happened in every step. Pure, mergeable, bounded.

A step is a second; when a level outgrows MAX_STEPS of them, each two become one of twice the length. What takes time
(being in flight, the tokens of an answer between its first and its last content) is spread evenly over the steps it
touches. Tokens are those of requests that succeeded.

The steady stretch is from the first step to the last one in which at least 0.9 of the peak was in flight, peak and
steps by their means: for a closed loop that leaves out filling and draining, for an open one what came before and
after. With fewer than three steps there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from runner.load.samples import RequestSample
from runner.sketch import Sketch, needed

MAX_STEPS: Final = 600
STEADY: Final = 0.9
MIN_STEADY_STEPS: Final = 3
_COUNTS: Final = ("busy_s", "sent", "succeeded", "failed", "throttled", "output_tokens")


@dataclass(slots=True)
class Step:
    """What happened in one step."""

    busy_s: float = 0.0
    """Seconds in flight, summed over requests."""
    sent: float = 0.0
    succeeded: float = 0.0
    failed: float = 0.0
    throttled: float = 0.0
    output_tokens: float = 0.0
    lag_max_s: float = 0.0
    ttft: Sketch = field(default_factory=Sketch)
    """Of the requests whose first content came in it."""

    def merge(self, other: Step) -> None:
        """Adds all that `other` has."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lag_max_s = max(self.lag_max_s, other.lag_max_s)
        self.ttft.merge(other.ttft)


class Steady(NamedTuple):
    """The stretch at the level's peak."""

    from_s: float
    to_s: float
    output_tokens_per_s: float
    requests_per_s: float


class Timeline:
    """The steps of one level."""

    def __init__(self) -> None:
        self.step_s = 1.0
        self.steps: list[Step] = []

    def add(self, sample: RequestSample) -> None:
        """Adds one request that was sent and has ended."""
        if sample.sent is None or sample.end is None:
            return
        ending = sample.ending
        self._at(sample.sent).sent += 1
        self._spread("busy_s", sample.sent, sample.end, sample.end - sample.sent)
        last = self._at(sample.end)
        setattr(last, ending, getattr(last, ending) + 1)
        if sample.first_content is not None and ending == "succeeded":
            self._at(sample.first_content).ttft.add(sample.first_content - sample.sent)
        if ending == "succeeded" and sample.tokens:
            first, final = answer_span(sample)
            self._spread("output_tokens", first, final, sample.tokens)

    def add_open(self, sent: float, until: float) -> None:
        """Adds a request that is still in flight."""
        self._at(sent).sent += 1
        self._spread("busy_s", sent, until, until - sent)

    def lag(self, t_s: float, lag_s: float) -> None:
        """Adds one measurement of the client's lag."""
        step = self._at(t_s)
        step.lag_max_s = max(step.lag_max_s, lag_s)

    def _at(self, t_s: float) -> Step:
        t_s = max(0.0, t_s)
        while t_s >= MAX_STEPS * self.step_s:
            self.coarsen()
        index = int(t_s / self.step_s)
        while len(self.steps) <= index:
            self.steps.append(Step())
        return self.steps[index]

    def _spread(self, name: str, start: float, end: float, amount: float) -> None:
        last = self._at(max(start, end))  # first, since it may make the steps longer
        length = end - start
        if length <= 0:
            setattr(last, name, getattr(last, name) + amount)
            return
        for index in range(int(max(0.0, start) / self.step_s), int(end / self.step_s) + 1):
            step, begin = self.steps[index], index * self.step_s
            part = overlap(start, end, begin, begin + self.step_s) / length
            setattr(step, name, getattr(step, name) + amount * part)

    def coarsen(self) -> None:
        """Makes each two steps one."""
        for first, second in zip(self.steps[::2], self.steps[1::2], strict=False):
            first.merge(second)
        self.steps = self.steps[::2]
        self.step_s *= 2

    def merge(self, other: Timeline) -> None:
        """Adds all that `other`, of the same level, has."""
        while self.step_s < other.step_s:
            self.coarsen()
        if other.step_s < self.step_s:
            other = Timeline.from_dict(other.to_dict())  # a copy, since it is changed
            while other.step_s < self.step_s:
                other.coarsen()
        while len(self.steps) < len(other.steps):
            self.steps.append(Step())
        for step, theirs in zip(self.steps, other.steps, strict=False):
            step.merge(theirs)

    # ── Read ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, duration_s: float) -> list[float]:
        """The mean of every step; the last one may be a part of a step."""
        found = []
        for index, step in enumerate(self.steps):
            covered = min(self.step_s, max(duration_s, 0.0) - index * self.step_s)
            # Less than a tenth of a step is no mean of anything.
            found.append(step.busy_s / covered if covered > self.step_s / 10 else 0.0)
        return found

    def steady(self, duration_s: float) -> Steady | None:
        """The stretch at the peak."""
        means = self.in_flight(duration_s)
        high = [index for index, mean in enumerate(means) if mean and mean >= STEADY * max(means)]
        if not high or high[-1] - high[0] + 1 < MIN_STEADY_STEPS:
            return None
        from_s, to_s = high[0] * self.step_s, min((high[-1] + 1) * self.step_s, duration_s)
        steps = self.steps[high[0] : high[-1] + 1]
        return Steady(
            from_s,
            to_s,
            sum(step.output_tokens for step in steps) / (to_s - from_s),
            sum(step.succeeded for step in steps) / (to_s - from_s),
        )

    def entries(self, duration_s: float) -> list[dict[str, Any]]:
        """`timeline` of load.json. Means and tokens are rounded."""
        return [
            {
                "t": index * self.step_s,
                "in_flight": round(mean),
                **{name: int(getattr(step, name)) for name in ("sent", "succeeded", "failed", "throttled")},
                "output_tokens": round(step.output_tokens),
                "ttft_p50": step.ttft.quantile(0.5) if step.ttft.count >= needed(0.5) else None,
                "lag_max_s": step.lag_max_s,
            }
            for index, (step, mean) in enumerate(zip(self.steps, self.in_flight(duration_s), strict=True))
        ]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        steps = [
            {**{name: getattr(step, name) for name in (*_COUNTS, "lag_max_s")}, "ttft": step.ttft.to_dict()}
            for step in self.steps
        ]
        return {"step_s": self.step_s, "steps": steps}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Timeline:
        """What `to_dict` made."""
        made = cls()
        made.step_s = float(data["step_s"])
        for step in data["steps"]:
            counts = {name: float(step[name]) for name in (*_COUNTS, "lag_max_s")}
            made.steps.append(Step(**counts, ttft=Sketch.from_dict(step["ttft"])))
        return made


def overlap(start: float, end: float, from_s: float, to_s: float) -> float:
    """How much of the one span is in the other."""
    return max(0.0, min(end, to_s) - max(start, from_s))


def answer_span(sample: RequestSample) -> tuple[float, float]:
    """From the first content to the last; both the end where nothing was streamed."""
    assert sample.end is not None
    if sample.first_content is None or sample.last_content is None:
        return sample.end, sample.end
    return sample.first_content, sample.last_content
