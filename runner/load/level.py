"""The statistics of one level: fed with every request, merged over processes, read as a level of load.json. Pure.

Memory is bounded whatever the number of requests: sketches, counters, a timeline of 600 steps, and one number for
each request that is in flight at the end.

What counts. A window leaves warm-up and cool-down out. A *request* belongs to it if it was due in it (scheduled; in a
closed loop: sent), however long it then took: its latencies, its failure and its share of goodput count, so that a
slow answer can't leave by the back door. *Rates* count what happened in the window: a request that was sent in it and
answered after it adds to `achieved` and not to `succeeded`, and tokens are spread between first and last content;
otherwise an overloaded server would seem to answer as fast as it was asked.

Every request ends as exactly one of succeeded, failed, throttled (429), dropped (never to be sent), waiting (for the
user's own limits, when the level was cut) or in flight, so that offered is their sum. Latencies are of those that
succeeded; `metrics_with_failures` has all others at +∞.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final, NamedTuple

from runner.limits import MAX_COUNTED_NAMES
from runner.load.definitions import METRICS
from runner.load.quantiles import Distribution, histogram
from runner.load.samples import RequestSample, values
from runner.load.slo import Slo
from runner.load.timeline import Timeline, answer_span, overlap
from runner.load.verdict import ClientSigns, Judged, judge
from runner.metrics import Tally

WITH_FAILURES: Final = ("ttft", "e2e")
HISTOGRAMS: Final = ("ttft", "icl", "e2e")
_RATES: Final = ("offered", "achieved", "succeeded", "input_tokens", "output_tokens", "chunks", "goodput")
_WAITS: Final = frozenset({"queue_wait", "send_lag", "limiter_wait"})
"""These are of every request that was sent and has ended: they are the client's, whatever the server answered. Of one
that is still in flight nobody has said when it left."""


class Window(NamedTuple):
    """The part of a level that counts, in seconds since its start."""

    from_s: float = 0.0
    to_s: float = math.inf

    def __contains__(self, moment: object) -> bool:
        return isinstance(moment, int | float) and self.from_s <= moment < self.to_s


class LevelStatistics:
    """What one level has seen so far."""

    def __init__(self, window: Window = Window(), slo: Slo | None = None) -> None:  # noqa: B008 - immutable
        self.window = window
        self.slo = slo
        self.counts: Counter[str] = Counter()
        """Requests by ending, and offered, admitted, sent, in_window, kept, unjudged, throttled_attempts, chunks,
        coalesced, without_usage, backed_off."""
        self.errors = Tally()
        self.within = dict.fromkeys(_RATES, 0.0)
        """What happened in the window: the numerators of the rates."""
        self.metrics = {metric.key: Distribution() for metric in METRICS}
        self.lag = Distribution()
        self.cpu_share: float | None = None
        self.backed_off_s = 0.0
        """How long streams waited before their next request, since the last one had failed at once."""
        self.timeline = Timeline()
        self._open: list[float] = []  # when those were sent that are still in flight

    # ── Fed ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, sample: RequestSample) -> None:
        """Counts one request that has ended, was dropped, or is in flight when the level is closed."""
        judgement = None if self.slo is None else self.slo.judge(sample)
        self._count(sample)
        self._happened(sample, judgement == "kept")
        self.timeline.add(sample)
        if sample.ending == "in_flight" and sample.sent is not None:
            self._open.append(sample.sent)
        if sample.due in self.window:
            self.counts["in_window"] += 1
            self.counts["kept"] += judgement == "kept"
            self.counts["unjudged"] += judgement == "unknown"
            self._measure(sample)

    def add_lag(self, t_s: float, lag_s: float) -> None:
        """Counts one measurement of how late the loop woke."""
        self.timeline.lag(t_s, lag_s)
        if t_s in self.window:
            self.lag.add(lag_s)

    def add_cpu(self, share: float) -> None:
        """The CPU that a process used over the level, as a share of one core; the highest counts."""
        self.cpu_share = max(share, self.cpu_share or 0.0)

    def add_pause(self, seconds: float) -> None:
        """Counts one wait of a stream after a request that had failed at once."""
        self.counts["backed_off"] += 1
        self.backed_off_s += seconds

    def _count(self, sample: RequestSample) -> None:
        counts = self.counts
        counts["offered"] += 1
        counts["admitted"] += sample.admitted is not None
        counts["sent"] += sample.sent is not None
        counts[sample.ending] += 1
        counts["throttled_attempts"] += sample.throttled_attempts
        counts["chunks"] += sample.chunks
        counts["coalesced"] += sample.coalesced
        if sample.ok:
            counts["without_usage"] += sample.output_tokens is None
        elif sample.fault is not None and sample.ending != "throttled":
            self.errors.note(sample.fault)

    def _happened(self, sample: RequestSample, kept: bool) -> None:
        """What of it happened in the window."""
        window, within = self.window, self.within
        within["offered"] += sample.due in window
        within["achieved"] += sample.sent in window
        if sample.ending != "succeeded":
            return
        ended = sample.end in window
        within["succeeded"] += ended
        within["goodput"] += ended and kept
        first, last = answer_span(sample)
        if first in window:
            within["input_tokens"] += sample.input_tokens or 0
        # An answer in one piece has no length to be spread over.
        part = overlap(first, last, *window) / (last - first) if last > first else float(first in window)
        within["output_tokens"] += (sample.tokens or 0) * part
        within["chunks"] += sample.chunks * part

    def _measure(self, sample: RequestSample) -> None:
        succeeded = sample.ending == "succeeded"
        for name, value in values(sample):
            if succeeded or (name in _WAITS and sample.end is not None):
                self.metrics[name].add(value)
        if succeeded:
            self.metrics["icl"].add_sketch(sample.gaps)
        else:
            for name in WITH_FAILURES:
                self.metrics[name].fail()

    def merge(self, other: LevelStatistics) -> None:
        """Adds what another process saw of the same level.

        Raises:
            ValueError: the windows or the objectives differ.
        """
        if (self.window, self.slo) != (other.window, other.slo):
            raise ValueError("statistics of different levels can't be merged")
        self.counts.update(other.counts)
        for name, amount in other.within.items():
            self.within[name] += amount
        for name, count in other.errors.items():
            self.errors[name if name in self.errors or len(self.errors) < MAX_COUNTED_NAMES else "other"] += count
        for name, distribution in other.metrics.items():
            self.metrics[name].merge(distribution)
        self.lag.merge(other.lag)
        self.backed_off_s += other.backed_off_s
        self.timeline.merge(other.timeline)
        self._open += other._open
        if other.cpu_share is not None:
            self.add_cpu(other.cpu_share)

    # ── Read ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def goodput(self) -> float | None:
        """Requests that keep every objective ÷ requests offered in the window."""
        offered = self.counts["in_window"]
        return self.counts["kept"] / offered if self.slo is not None and offered else None

    def judged(self) -> Judged:
        """The verdict on the client."""
        return judge(self._signs())

    def _signs(self) -> ClientSigns:
        lag, delay = self.lag, self.metrics["send_lag"]
        lag_p99_s, delay_p99_s = lag.quantile(0.99), delay.quantile(0.99)
        chunks = self.counts["chunks"]
        coalesced = self.counts["coalesced"] / chunks if chunks else None
        # Whatever n is: a verdict must be given. Its words say whether it is a percentile.
        return ClientSigns(
            lag.sketch.quantile(0.99) if lag_p99_s is None else lag_p99_s,
            delay.sketch.quantile(0.99) if delay_p99_s is None else delay_p99_s,
            self.cpu_share,
            coalesced,
            lag_is_p99=lag_p99_s is not None,
            delay_is_p99=delay_p99_s is not None,
        )

    def report(self, duration_s: float) -> dict[str, Any]:
        """What a level of load.json says, but for its label, kind, value, repeat, start and server metrics.

        `duration_s` is how long the level has lasted. Infinite figures are the string "inf".
        """
        timeline = self._whole_timeline(duration_s)
        steady = timeline.steady(duration_s)
        to_s = max(self.window.from_s, min(self.window.to_s, duration_s))
        return {
            "duration_s": duration_s,
            "window_s": [self.window.from_s, to_s],
            "requests": self._requests(),
            "errors": dict(self.errors),
            "throttled": self.counts["throttled"],
            "throttled_attempts": self.counts["throttled_attempts"],
            "backed_off": self.counts["backed_off"],
            "backed_off_s": self.backed_off_s,
            "without_usage": self.counts["without_usage"],
            "unjudged": self.counts["unjudged"] if self.slo is not None else None,
            "rates": self._rates(to_s - self.window.from_s),
            "steady": None if steady is None else steady._asdict(),
            "goodput": self.goodput,
            "metrics": {name: found.quantiles() for name, found in self.metrics.items()},
            "metrics_with_failures": {
                name: {key: _json(value) for key, value in self.metrics[name].quantiles_with_failures().items()}
                for name in WITH_FAILURES
            },
            "histograms": {name: [list(bin_) for bin_ in histogram(self.metrics[name].sketch)] for name in HISTOGRAMS},
            "timeline": timeline.entries(duration_s),
            "client": self._client(),
        }

    def _whole_timeline(self, duration_s: float) -> Timeline:
        """With what is still in flight."""
        if not self._open:
            return self.timeline
        timeline = Timeline.from_dict(self.timeline.to_dict())
        for sent in self._open:
            timeline.add_open(sent, max(sent, duration_s))
        return timeline

    def _requests(self) -> dict[str, int]:
        names = ("offered", "admitted", "sent", "succeeded", "failed", "dropped", "in_window")
        at_end = {f"{name}_at_end": self.counts[name] for name in ("in_flight", "waiting")}
        return {**{name: self.counts[name] for name in names}, **at_end}

    def _rates(self, seconds: float) -> dict[str, float | None]:
        if seconds <= 0:
            return {f"{name}_per_s": None for name in (*_RATES, "total_tokens")}
        rates: dict[str, float | None] = {f"{name}_per_s": self.within[name] / seconds for name in _RATES}
        rates["total_tokens_per_s"] = (self.within["input_tokens"] + self.within["output_tokens"]) / seconds
        if 0 < self.counts["without_usage"] == self.counts["succeeded"]:
            # Nobody counted the inputs: that is unknown, not none.
            rates["input_tokens_per_s"] = rates["total_tokens_per_s"] = None
        if self.slo is None:
            rates["goodput_per_s"] = None
        return rates

    def _client(self) -> dict[str, Any]:
        signs, judged = self._signs(), self.judged()
        return {
            "verdict": judged.verdict,
            "reasons": list(judged.reasons),
            "lag_p99_s": self.lag.quantile(0.99),
            "lag_max_s": self.lag.sketch.max,
            "schedule_delay_p99_s": self.metrics["send_lag"].quantile(0.99),
            "schedule_delay_max_s": self.metrics["send_lag"].sketch.max,
            "cpu_share": signs.cpu_share,
            "coalesced_share": signs.coalesced_share,
        }

    # ── Between processes ────────────────────────────────────────────────────────────────────────────────────────

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, of bounded size."""
        return {
            "window": [self.window.from_s, None if self.window.to_s == math.inf else self.window.to_s],
            "slo": None if self.slo is None else dict(self.slo.limits),
            "counts": dict(self.counts),
            "within": dict(self.within),
            "errors": dict(self.errors),
            "metrics": {name: distribution.to_dict() for name, distribution in self.metrics.items()},
            "lag": self.lag.to_dict(),
            "cpu_share": self.cpu_share,
            "backed_off_s": self.backed_off_s,
            "timeline": self.timeline.to_dict(),
            "open": self._open,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LevelStatistics:
        """What `to_dict` made.

        Raises:
            ValueError: it isn't that; TypeError and KeyError where a part is of another type or missing.
        """
        from_s, to_s = data["window"]
        made = cls(
            Window(from_s, math.inf if to_s is None else to_s), None if data["slo"] is None else Slo(data["slo"])
        )
        made.counts.update(data["counts"])
        made.within.update(data["within"])
        made.errors.update(data["errors"])
        made.metrics |= {name: Distribution.from_dict(found) for name, found in data["metrics"].items()}
        made.lag = Distribution.from_dict(data["lag"])
        made.cpu_share = data["cpu_share"]
        made.backed_off_s = data["backed_off_s"]
        made.timeline = Timeline.from_dict(data["timeline"])
        made._open = [float(sent) for sent in data["open"]]
        return made


def _json(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value
