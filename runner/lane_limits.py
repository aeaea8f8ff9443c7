"""What one lane may use: the configured limits of its models, and what the server's headers say of them.

A header lowers a limit at once and raises it when several answers agree; it never raises it above the configuration.
No job fails by a limit that a single header named.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from runner.buckets import Bucket
from runner.quota import Quota
from runner.ratelimits import Allowance
from runner.tickets import BY_NAME, MEASURES, Measure, Need, NeverFits

if TYPE_CHECKING:
    from runner.settings import ModelLimits

AGREED: Final = 3
"""So many answers in a row must name a limit before it is raised, or a job fails by it."""


class LaneLimits:
    """See the module. All methods are for one event loop."""

    def __init__(self, configured: ModelLimits, clock: Callable[[], float], token_limit: float | None) -> None:
        """`token_limit`: a limit of tokens a minute that holds beside these."""
        self.concurrency = configured.concurrency
        self.buckets: dict[str, Bucket | Quota] = {}
        self._configured = configured
        self._token_limit = token_limit
        self._clock = clock
        self._higher: dict[str, int] = {}  # answers in a row that named a higher limit
        self._same: dict[str, int] = {}  # …that named the one in force
        self._newly_agreed = False
        for measure in MEASURES:
            limit = getattr(configured, measure.name)
            if limit is not None:
                self.buckets[measure.name] = (
                    Bucket(limit, clock) if measure.window_s == 60 else Quota(limit, clock, window_s=measure.window_s)
                )

    # ── Using ────────────────────────────────────────────────────────────────────────────────────────────────────

    def fitted(self, need: Need) -> Need:
        """What an attempt reserves: a guess at its output shrinks to what one window gives.

        Raises:
            NeverFits: it needs more than a whole window.
        """
        if self._token_limit is None and not self.buckets:
            return need
        for measure, limit in self._certain():
            beyond = measure.of(need) - limit
            if beyond > 0 and need.guessed and measure.counts_output and beyond < need.output_tokens:
                need = need._replace(output_tokens=max(1, int(need.output_tokens - beyond)))
            elif beyond > 0 and measure.of(need) > 1:
                window = "a day" if measure.window_s > 60 else "a minute"
                raise NeverFits(f"needs about {measure.of(need):,.0f} tokens, and the limit is {limit:,.10g} {window}")
        return need

    def _certain(self) -> list[tuple[Measure, float]]:
        """The limits of tokens in force, but for those that only one header has named."""
        limits = [] if self._token_limit is None else [(BY_NAME["tpm"], self._token_limit)]
        for name, bucket in self.buckets.items():
            configured: float | None = getattr(self._configured, name)
            limit = bucket.limit if isinstance(bucket, Quota) else bucket.per_minute
            if limit != configured and self._same.get(name, 0) < AGREED:
                limit = math.inf if configured is None else configured
            if BY_NAME[name].counts_tokens:
                limits.append((BY_NAME[name], limit))
        return limits

    def used_up(self, need: Need) -> tuple[str | None, float]:
        """The limit of a day that has no room, and for how long at most; an attempt isn't taken to wait for that."""
        for name, bucket in self.buckets.items():
            wait_s = bucket.opens_in(BY_NAME[name].of(need)) if isinstance(bucket, Quota) else 0.0
            if wait_s > 0:
                return BY_NAME[name].label, wait_s
        return None, 0.0

    def have(self, need: Need) -> bool:
        """Whether an attempt would have nothing to wait for."""
        return not self.buckets or all(bucket.has(BY_NAME[name].of(need)) for name, bucket in self.buckets.items())

    def pay(self, need: Need) -> None:
        """Pays for an attempt that they have room for."""
        for name, bucket in self.buckets.items():
            bucket.pay(BY_NAME[name].of(need))

    async def acquire(
        self, need: Need, paid: list[str], timed: Callable[[str, Awaitable[None]], Awaitable[None]]
    ) -> None:
        """Waits until all are paid, one after the other; `paid` says which have been, `timed` waits for each."""
        for measure in MEASURES:
            bucket = self.buckets.get(measure.name)
            if bucket is not None:
                await timed(measure.label, bucket.acquire(measure.of(need)))
                paid.append(measure.name)

    def went(self) -> None:
        """What was paid last is sent now."""
        for _, bucket in self._of_minutes():
            bucket.went()

    def be_careful(self) -> None:
        """The server refused what should have been within its limits."""
        for _, bucket in self._of_minutes():
            bucket.careful = True

    def give_back(self, need: Need, names: list[str]) -> None:
        """What was paid of these limits wasn't sent."""
        for name in names:
            self.buckets[name].correct(BY_NAME[name].of(need))

    def correct(self, need: Need, used: Need, paid_s: float, *, refunds: bool) -> None:
        """Gives back what was reserved beyond the real usage, if `refunds`, or takes what is missing."""
        for name, bucket in self.buckets.items():
            difference = BY_NAME[name].of(need) - BY_NAME[name].of(used)
            if difference < 0 or (difference > 0 and refunds):
                bucket.correct(difference, paid_s)

    @property
    def live_on_refunds(self) -> bool:
        """Whether more was reserved of one of them than a server lets through that gives nothing back."""
        return any(bucket.lives_on_refunds for _, bucket in self._of_minutes())

    @property
    def load(self) -> float:
        """The part of a minute's (or a day's) allowance that is in use, of the limit that is used most; 0 to 1."""
        return max((1 - bucket.free for bucket in self.buckets.values()), default=0.0)

    def per_s(self, need: Need) -> float | None:
        """Such requests a second that the limits of a minute let through; None where there are none."""
        return min((bucket.per_s(BY_NAME[name].of(need)) for name, bucket in self._of_minutes()), default=None)

    def _of_minutes(self) -> list[tuple[str, Bucket]]:
        return [(name, bucket) for name, bucket in self.buckets.items() if isinstance(bucket, Bucket)]

    # ── Learning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, name: str, said: Allowance, *, age_s: float, taken_since: float) -> float:
        """Takes over what a header says of "rpm" or "tpm"; returns by how much that changes the limit.

        It was said `age_s` ago at most, and `taken_since` was admitted after that.
        """
        named = said.per_minute
        if named is None:
            return 0.0
        ceiling = getattr(self._configured, name)
        limit = named if ceiling is None else min(named, ceiling)
        bucket = self.buckets.get(name)
        before = bucket.per_minute if isinstance(bucket, Bucket) else math.inf
        if abs(60 * limit - before) <= 1e-3 * before < math.inf:
            limit = before  # a limit of a second, of which too little is left to look like one
        if not isinstance(bucket, Bucket):
            bucket = self.buckets[name] = Bucket(limit, self._clock)
        self._adopt(name, bucket, limit)
        if _remains(said):
            bucket.observe(said.remaining or 0.0, age_s=age_s, taken_since=taken_since)
        return bucket.per_minute - before

    def learn_more(self, said: Allowance, *, age_s: float, taken_since: float) -> None:
        """A second limit of tokens, the project's beside the organisation's: its remainder is a bound of its own."""
        bucket = self.buckets.get("tpm")
        if said.per_minute is not None and _remains(said) and isinstance(bucket, Bucket):
            bucket.observe(
                said.remaining or 0.0, age_s=age_s, taken_since=taken_since, per_minute=said.per_minute, of="more"
            )

    def _adopt(self, name: str, bucket: Bucket, limit: float) -> None:
        before = bucket.per_minute
        self._higher[name] = self._higher.get(name, 0) + 1 if limit > before else 0
        if limit <= before or self._higher[name] >= AGREED:
            bucket.resize(limit)
        self._same[name] = self._same.get(name, 0) + 1 if bucket.per_minute == before else 1
        self._newly_agreed |= self._same[name] == AGREED

    def newly_agreed(self) -> bool:
        """Whether a limit has become certain since this was asked last: what is being paid for may never fit."""
        agreed, self._newly_agreed = self._newly_agreed, False
        return agreed


def _remains(said: Allowance) -> bool:
    """Whether it says what is left. Nothing, and full again at once, is a contradiction."""
    return said.remaining is not None and not (said.remaining == 0 and said.reset_s == 0)
