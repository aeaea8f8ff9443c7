"""What a run and a load test are made of, from their settings: endpoints and clients, limits, the redactor of keys.

One place, so that both send in the same way.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from runner import manifest
from runner.admission import Admission
from runner.client import Client
from runner.concurrency import AdaptiveConcurrency, Concurrency, FixedConcurrency
from runner.endpoints import Endpoint
from runner.gate import Gate
from runner.limits import MAX_CONCURRENCY
from runner.redact import Redactor
from runner.settings import EndpointSettings, Settings
from runner.target import Target, resolve, simulated


@asynccontextmanager
async def targets_of(settings: Settings, simulate: str | None) -> AsyncIterator[list[Target]]:
    """Where to send: what the settings name, or a simulator of that kind that lives as long as the context.

    Raises:
        UsageError: no key, or a base URL that isn't one.
    """
    if simulate is None:
        yield resolve(settings)
        return
    from runner.simulator.process import simulator_process  # a server's imports, which a real run can do without

    async with simulator_process(simulate) as simulator:
        yield simulated(settings, simulator.base_url)


def redactor_for(targets: Sequence[Target]) -> Redactor:
    """Knows the keys of the targets, values of variables that are keys by their name, and what opens the proxies.

    A server or a proxy may tell any of them in its message.
    """
    endings = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
    environment = [value for name, value in os.environ.items() if name.upper().endswith(endings)]
    logins = [secret for url in getproxies().values() for secret in _login(url)]
    return Redactor([*(target.api_key for target in targets), *environment, *logins])


def _login(url: str) -> tuple[str, ...]:
    """The password that a proxy's URL holds, or its user where that is all, as it is written and as it is sent."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no proxy, as will be said where one is looked for
        return ()
    secret = parts.password or parts.username or ""
    return secret, unquote(secret)


def name_of(target: Target) -> str:
    """The endpoint's name; where it has none its base URL."""
    return target.settings.name if target.settings else manifest.without_credentials(target.base_url)


def clients_of(targets: Sequence[Target], settings: Settings) -> dict[str, Client]:
    """A client an endpoint, by its name."""
    return {name_of(target): _client(target, settings) for target in targets}


def _client(target: Target, settings: Settings) -> Client:
    version = target.settings.api_version if target.settings else None
    return Client(
        base_url=target.base_url,
        api_key=target.api_key,
        trust_env=not target.simulated,
        api_version=version,
        transport=settings.transport,
    )


def admission_of(settings: Settings, targets: Sequence[Target], kind: type[Admission] = Admission) -> Admission:
    """One endpoint has the run's limits; several have their own, within the run's."""
    clock = time.monotonic
    if len(targets) == 1 and targets[0].settings is None:
        return kind.of_one(
            rpm=settings.rpm,
            tpm=settings.tpm,
            concurrency=_concurrency(settings.concurrency),
            clock=clock,
            limits=settings.limits,
            name=name_of(targets[0]),
        )
    most = MAX_CONCURRENCY if settings.concurrency == "auto" else settings.concurrency
    whole = Gate(rpm=settings.rpm, tpm=settings.tpm, concurrency=FixedConcurrency(most), clock=clock)
    endpoints = [_endpoint(target.settings, settings, whole) for target in targets if target.settings is not None]
    return kind(endpoints, clock=clock, whole=whole)


def _endpoint(said: EndpointSettings, settings: Settings, whole: Gate) -> Endpoint:
    concurrency = _concurrency(said.concurrency or settings.concurrency)
    gate = Gate(rpm=said.rpm, tpm=said.tpm, concurrency=concurrency, clock=time.monotonic, outer=whole)
    return Endpoint(said.name, gate, settings.limits_at(said), said.models, said.stream_options)


def _concurrency(wanted: int | Literal["auto"]) -> Concurrency:
    return AdaptiveConcurrency() if wanted == "auto" else FixedConcurrency(wanted)
