"""What the simulator serves beside the API: its state for tests, its limits to be changed, and a trap behind redirects.

None of it needs a key or counts as a request, but for the trap: that somebody followed a redirect must show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp import web

from runner.errors import UsageError
from runner.simulator.allowance import Allowance
from runner.simulator.ledger import Ledger
from runner.simulator.profile import Profile
from runner.simulator.refusals import ApiError, bad_request, not_found

CREATED: Final = 1_750_000_000
"""The time at which everything synthetic was made, as far as the API's fields ask."""


def refusal(error: ApiError, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as the API sends it."""
    return web.json_response({"error": error.error}, status=error.status, headers=headers)


class Console:
    """The handlers, and what they look at."""

    def __init__(self, profile: Profile, ledger: Ledger, allowance: Allowance) -> None:
        self._profile = profile
        self._ledger = ledger
        self._allowance = allowance

    def routes(self) -> list[web.RouteDef]:
        """To be added after the API's: the last one takes every URL that is left."""
        return [
            web.get("/health", self.health),
            web.get("/stats", self.stats),
            web.post("/limits", self.limits),
            web.route("*", "/redirected", self.redirected),
            web.route("*", "/{path:.*}", self.nothing),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """GET /health."""
        return web.json_response({"status": "ok", "synthetic": True, "seed": self._profile.seed})

    async def stats(self, request: web.Request) -> web.Response:
        """GET /stats: everything, or `?log=N` for the last N entries only."""
        last = request.query.get("log", "")
        payload = orjson.dumps(self._ledger.stats(int(last) if last.isdecimal() else None))
        return web.Response(body=payload, content_type="application/json")

    async def limits(self, request: web.Request) -> web.Response:
        """POST /limits `{"rpm": …, "tpm": …}`: the limits from now on. null is none; one that isn't named stays."""
        try:
            named = orjson.loads(await request.read())
            if not isinstance(named, dict) or not named.keys() <= {"rpm", "tpm"}:
                raise UsageError("expected an object with rpm and tpm")
            self._profile = dataclasses.replace(self._profile, **named)
        except (ValueError, TypeError, UsageError) as error:
            return refusal(bad_request(f"Invalid limits: {error}"))
        self._allowance.limit(self._profile.rpm, self._profile.tpm)
        return web.json_response({"rpm": self._profile.rpm, "tpm": self._profile.tpm})

    async def redirected(self, request: web.Request) -> web.Response:
        """Where the redirects lead: a whole answer, so that following one shows."""
        entry = self._ledger.arrive("/redirected", None)
        entry.status = 200
        self._ledger.leave(entry)
        message = {"role": "assistant", "content": "This is what a redirect led to."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {"id": "chatcmpl-redirected", "object": "chat.completion", "created": CREATED, "choices": [choice]}
        )

    async def nothing(self, request: web.Request) -> web.Response:
        """Every other URL."""
        return refusal(not_found(request.method, request.path))
