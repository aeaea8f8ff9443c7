"""The pause of a lane after a refusal, and the probe that ends it. Pure: the time is passed in.

A pause lasts as long as the server says, or a default that doubles while nothing is accepted. Then one attempt goes as
a probe, and the others stay until it is answered. A probe that is refused begins the next pause, one that ends in any
other way lets the others go: it can't freeze.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runner.tickets import Ticket

START_S: Final = 1.0
"""The first pause where the server names none; it doubles for each probe that is refused."""
MAX_S: Final = 60.0
"""…up to a minute, the longest window that a per-minute limit can need. The server's own advice may be longer."""


class Cooldown:
    """See the module."""

    def __init__(self) -> None:
        self.until_s = 0.0
        self._next_s = START_S
        self.in_vain = False
        """Whether nothing was accepted since the last one."""
        self.probing = False
        """Whether the next attempt that goes is a probe, or one is under way."""
        self.probe: Ticket | None = None
        """The probe that is under way: everybody waits for its answer."""

    def begin(self, now_s: float, advice_s: float | None) -> float:
        """An episode of refusals begins; returns for how long nothing is sent."""
        # The server's advice is enough the first time; when its probe meets another refusal, it was too short.
        own_s = self._next_s if advice_s is None or self.in_vain else 0.0
        self._next_s = min(2 * self._next_s, MAX_S)
        pause_s = max(advice_s or 0.0, own_s)
        self.extend(now_s, pause_s)
        self.in_vain = self.probing = True
        return pause_s

    def extend(self, now_s: float, advice_s: float | None) -> None:
        """One more refusal of the same episode, or one by chance: the server's advice is kept."""
        self.until_s = max(self.until_s, now_s + (advice_s or 0.0))

    def sent(self, ticket: Ticket) -> None:
        """An attempt goes: as the probe, where one is due."""
        if self.probing:
            self.probe = ticket

    def accepted(self, ticket: Ticket) -> None:
        """The server let an attempt in; of those that were sent before the pause that proves nothing."""
        if ticket.granted_s >= self.until_s:
            self.in_vain = self.probing = False
            self.probe = None  # its stream may go on for long: a later pause isn't its business
            self._next_s = START_S

    def probe_ended(self, now_s: float) -> None:
        """The probe is over, however it ended: if it was refused, the next pause has begun already."""
        self.probe = None
        self.probing = now_s < self.until_s
