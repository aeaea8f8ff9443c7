"""What an attempt needs of the limits, and the ticket that it gets for it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from runner.endpoints import Endpoint
    from runner.faults import Fault
    from runner.lanes import Lane


class AdmissionClosed(Exception):
    """Raised to those who wait for admission when the run drains."""


class NeverFits(Exception):
    """Raised when a job needs more tokens than the limit gives in its whole window."""


class NotServed(Exception):
    """Raised when no endpoint of the pool serves the model."""


class AllDisabled(Exception):
    """Raised when every endpoint that serves the model has been disabled; `fault` is what disabled the last."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Need(NamedTuple):
    """What an attempt is expected to use, in tokens."""

    input_tokens: int
    output_tokens: int
    guessed: int = 0
    """Choices whose output is a guess, since the job names no maximum."""

    @property
    def tokens(self) -> int:
        """Both."""
        return self.input_tokens + self.output_tokens


class Measure(NamedTuple):
    """One kind of limit."""

    name: str  # in the settings
    label: str  # for people
    of: Callable[[Need], int]
    window_s: float
    counts_tokens: bool = True
    counts_output: bool = True


MEASURES: Final = (
    # Tokens before requests: no request is spent while tokens are awaited.
    Measure("tpd", "tokens a day", lambda need: need.tokens, 86_400.0),
    Measure("tpm", "tokens", lambda need: need.tokens, 60.0),
    Measure("input_tpm", "input tokens", lambda need: need.input_tokens, 60.0, counts_output=False),
    Measure("output_tpm", "output tokens", lambda need: need.output_tokens, 60.0),
    Measure("rpd", "requests a day", lambda need: 1, 86_400.0, counts_tokens=False),
    Measure("rpm", "requests", lambda need: 1, 60.0, counts_tokens=False),
)
BY_NAME: Final = {measure.name: measure for measure in MEASURES}


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted attempt. Settle it once with the real usage, and release it."""

    need: Need
    lane: Lane
    endpoint: Endpoint
    """Where it goes: the lane's."""
    limiter_wait_s: float
    """Time in line in which the head of it waited for limits or a cool-down."""
    granted_s: float
    nth: int
    """Requests that the lane had admitted by then, this one included."""
    nth_token: int
    """…and their tokens."""
    place: int = 0
    """In line: see `Waiter.nth`."""
    attempt: int = 0
    """Of its job, from 0."""
    answered: bool = False
    """Whether a good status has come."""
    accepted: bool = False
    """Whether that counts: see `Lane.accepted`."""
    refused: bool = False
    """Whether the server refused it: an attempt can be refused once."""
    settled: bool = False
    released: bool = False
