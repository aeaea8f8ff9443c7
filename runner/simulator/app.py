"""The simulated server as an aiohttp application.

A request goes: body read, key and entry in the ledger, credentials, understanding, concurrency, storm, RPM and TPM,
scenario, answer. What is refused on the way costs nothing of the limits; what fails behind them does, as at the API.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from aiohttp import web

from runner.limits import SIMULATOR_BODY_BYTES
from runner.simulator import asked, faults, responses
from runner.simulator.allowance import Allowance, rate_limited
from runner.simulator.background import LASTING, Generation, Responses, asked_stream, cancel
from runner.simulator.console import CREATED, Console, refusal
from runner.simulator.exchange import Exchange, HungUp
from runner.simulator.ledger import Entry, Ledger
from runner.simulator.plan import Plan, charge, plan
from runner.simulator.profile import Profile
from runner.simulator.refusals import ApiError, bad_request, invalid_json, overloaded, wrong_key
from runner.simulator.rehearsal import digest, prompt_key
from runner.simulator.scenarios.refused import storm

FOLLOW: Final = "/responses/{id}"
"""What the ledger calls a GET of a background response…"""
CANCEL: Final = "/responses/{id}/cancel"
"""…and its end."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(profile: Profile, ledger: Ledger | None = None) -> web.Application:
    """The application; `ledger` is where it enters what it sees, also to be read from outside.

    Raises:
        UsageError: the profile names a scenario that doesn't exist.
    """
    service = _Service(faults.check(profile), ledger or Ledger())
    app = web.Application(client_max_size=SIMULATOR_BODY_BYTES)
    for api in (asked.CHAT, asked.RESPONSES, asked.COMPLETIONS, asked.EMBEDDINGS):
        app.router.add_post("/v1" + api, service.endpoint(api))
    app.router.add_get("/v1/responses/{id}", service.follow)
    app.router.add_post("/v1/responses/{id}/cancel", service.cancel)
    app.router.add_get("/v1/models", service.models)
    app.router.add_get("/v1/models/{id:.+}", service.model)
    app.add_routes(Console(service.profile, service.ledger, service.allowance).routes())
    app.on_shutdown.append(service.shut_down)
    return app


class _Service:
    """What the handlers share."""

    def __init__(self, profile: Profile, ledger: Ledger) -> None:
        self.profile = profile
        self.ledger = ledger
        self.allowance = Allowance(profile.rpm, profile.tpm, profile.burst_s, ledger.clock)
        self.responses = Responses()
        self._active = 0
        self._first_s: float | None = None
        self._closing = False
        self._run = f"{time.time_ns() // 1_000_000:012x}"

    def endpoint(self, api: str) -> Handler:
        """The handler of one endpoint."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._handle(api, request)

        return handle

    async def _handle(self, api: str, request: web.Request) -> web.StreamResponse:
        started_s = asyncio.get_running_loop().time()
        body, key = await _read(request)
        entry = self.ledger.arrive(api, key)
        return await self._entered(entry, self._serve(api, request, body, entry, started_s))

    async def _entered(self, entry: Entry, serving: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """An answer, and how it ended in the ledger."""
        try:
            return await serving
        except ApiError as error:
            entry.status = error.status
            return self._refused(error, entry)
        except asyncio.CancelledError:
            entry.disconnected = not self._closing
            raise
        finally:
            self.ledger.leave(entry)

    async def _serve(
        self, api: str, request: web.Request, body: ApiError | dict[str, Any], entry: Entry, started_s: float
    ) -> web.StreamResponse:
        self._check_credentials(request)
        if isinstance(body, ApiError):
            raise body
        assert entry.key is not None  # a body has a key
        understood = plan(api, body, entry.key, self.profile, faults.NAMES)
        entry.tokens = understood.tokens
        return await self._in_its_turn(request, understood, entry, started_s, charge(understood, self.profile))

    async def _in_its_turn(
        self,
        request: web.Request,
        understood: Plan,
        entry: Entry,
        started_s: float,
        tokens: int,
        generation: Generation | None = None,
    ) -> web.StreamResponse:
        if self.profile.max_concurrency is not None and self._active >= self.profile.max_concurrency:
            raise overloaded()
        self._active += 1
        try:
            self._charge(understood, entry, tokens)
            ex = Exchange(request, understood, self.profile, entry, self._headers(entry), started_s, generation)
            return await self._answer(ex)
        finally:
            self._active -= 1

    def _charge(self, understood: Plan, entry: Entry, tokens: int) -> None:
        if self._storm_left_s(entry.t) > 0:
            return
        refusal = self.allowance.take(tokens)
        if refusal is not None:
            error = rate_limited(refusal, understood.answer.asked.model)
            error.headers |= self.allowance.headers(refusal.kind)
            raise error

    async def _answer(self, ex: Exchange) -> web.StreamResponse:
        entry = ex.entry
        stormy_s = self._storm_left_s(entry.t)
        if stormy_s > 0:
            entry.fault = faults.STORM
            return await storm(ex, stormy_s)
        nth = self.ledger.let_in(entry)
        entry.fault = faults.choose(self.profile, ex.plan.rehearsal, entry.key or "", nth)
        if ex.plan.background:
            self._generate(ex, nth)
        run = Exchange.answer if entry.fault is None else faults.SCENARIOS[entry.fault].run
        try:
            return await run(ex)
        except ConnectionError as error:
            # Our own doing or the client's: either way aiohttp is handed what there is, and finds the socket closed.
            entry.disconnected = not isinstance(error, HungUp)
            return ex.response

    # ── Background responses ─────────────────────────────────────────────────────────────────────────────────────

    def _generate(self, ex: Exchange, nth: int) -> None:
        """What a POST begins, or what a GET finds: from here on it is `ex.generation`."""
        found = ex.generation
        begins = found is None
        if found is None:
            assert ex.entry.key is not None
            ex.plan = ex.plan.named(f"{digest(ex.entry.key, nth, 2):032x}")
            found = ex.begin(ex.entry.fault if ex.entry.fault in LASTING else None)
            self.responses.add(found)
        elif found.fault is not None:
            ex.entry.fault = found.fault
        if not ex.plan.stream:
            ex.plan = ex.plan.showing(responses.state(ex.plan.answer, "queued") if begins else found.state())
            # What befalls the response shows in its state; the rest befalls the delivery.
            ex.entry.fault = None if ex.entry.fault in LASTING else ex.entry.fault

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/responses/{id}: its state, or its events from anywhere on."""
        found = self.responses.find(request.match_info["id"])
        entry = self.ledger.arrive(FOLLOW, None if found is None else found.key)
        return await self._entered(entry, self._follow(request, entry))

    async def _follow(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        self._check_credentials(request)
        generation = self.responses.get(request.match_info["id"])
        wanted = asked_stream(generation, request.query.get("stream"), request.query.get("starting_after"))
        return await self._in_its_turn(request, wanted, entry, generation.started_s, 0, generation)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/responses/{id}/cancel."""
        entry = self.ledger.arrive(CANCEL, None)
        return await self._entered(entry, self._cancel(request, entry))

    async def _cancel(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        self._check_credentials(request)
        state = cancel(self.responses.get(request.match_info["id"]))
        entry.status = 200
        return web.json_response(state, headers=self._headers(entry))

    # ── Everything else ──────────────────────────────────────────────────────────────────────────────────────────

    def _storm_left_s(self, now_s: float) -> float:
        if self._first_s is None:
            self._first_s = now_s
        return faults.storm_left_s(self.profile, now_s - self._first_s)

    def _headers(self, entry: Entry) -> dict[str, str]:
        """Of every answer."""
        return {
            "server": "runner-simulator (synthetic)",
            "x-request-id": f"req_{self._run}{entry.n:020x}",
            "openai-version": "2020-10-01",
            **self.allowance.headers(),
        }

    def _refused(self, error: ApiError, entry: Entry) -> web.Response:
        return refusal(error, {**self._headers(entry), "openai-processing-ms": "0", **error.headers})

    def _check_credentials(self, request: web.Request) -> None:
        expected = self.profile.api_key
        if expected is None:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("api-key")
        if sent != expected:
            raise wrong_key(sent)

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models: the one model."""
        return self._plain(request, {"object": "list", "data": [_model(self.profile.model)]})

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{id}: every name is served."""
        return self._plain(request, _model(request.match_info["id"]))

    def _plain(self, request: web.Request, answer: dict[str, Any]) -> web.Response:
        entry = self.ledger.arrive("/models", None)
        try:
            self._check_credentials(request)
            entry.status = 200
            return web.json_response(answer, headers=self._headers(entry))
        except ApiError as error:
            entry.status = error.status
            return self._refused(error, entry)
        finally:
            self.ledger.leave(entry)

    async def shut_down(self, _: web.Application) -> None:
        """From now on a request that is cancelled was not the client's doing."""
        self._closing = True


async def _read(request: web.Request) -> tuple[ApiError | dict[str, Any], str | None]:
    """A request's body and key, or why there is none."""
    try:
        body = orjson.loads(await request.read())
        if isinstance(body, dict):
            return body, prompt_key(body)
    except (ValueError, TypeError):  # TypeError: nested so deep that orjson reads it but won't write it
        return invalid_json(), None
    except web.HTTPRequestEntityTooLarge:
        return bad_request("Request body is too large.", status=413), None
    return invalid_json(), None


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "synthetic"}
