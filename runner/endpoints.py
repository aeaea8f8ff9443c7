"""The endpoints of a run, as admission sees them: what each serves and allows, and whether it can be used. Pure.

One endpoint is a base URL with one key; two keys of one server are two endpoints. Which of them takes a job is decided
in `queues`; what was sent where, by which client, is the worker's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.breaker import Breaker

if TYPE_CHECKING:
    from runner.faults import Fault
    from runner.gate import Gate
    from runner.lanes import Lane
    from runner.settings import ModelLimits, StreamOptions


@dataclass(slots=True, eq=False)
class Endpoint:
    """One of them, and its state in this run."""

    name: str
    """For records and people: its name in the settings, or its URL where it is the only one."""
    gate: Gate
    limits: Mapping[str, ModelLimits]
    models: Mapping[str, str] = field(default_factory=dict)
    """Model asked for → what it is called there; empty: every model, under its own name."""
    stream_options: StreamOptions | None = None
    """What to ask of a stream there; None: what the run asks."""
    breaker: Breaker = field(default_factory=Breaker)
    lanes: dict[str, Lane] = field(default_factory=dict)
    """By limit group."""
    fault: Fault | None = None
    """Why nothing more is sent there: its key is refused, or its account is empty."""
    admitted: int = 0
    """Requests sent there so far."""

    @property
    def disabled(self) -> bool:
        """Whether nothing more is sent there."""
        return self.fault is not None

    def serves(self, model: str | None) -> bool:
        """Whether jobs for this model can go there."""
        return not self.models or model in self.models

    def name_of(self, model: str | None) -> str | None:
        """What the model is called there, where that differs; else None."""
        return self.models.get(model) if model is not None else None

    @property
    def state(self) -> str:
        """For people: "ok", "broken" or "disabled"."""
        return "disabled" if self.disabled else "ok" if self.breaker.closed else "broken"


def favourite(key: str, names: Iterable[str]) -> str:
    """The name that a key sticks to: the same in every run, and for most keys whatever names come or go.

    Source: Thaler and Ravishankar, rendezvous (highest random weight) hashing.
    """
    return max(names, key=lambda name: hashlib.blake2b(f"{key}\0{name}".encode("utf-8", "surrogatepass")).digest())
