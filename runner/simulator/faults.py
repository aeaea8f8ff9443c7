"""The scenarios: what can go wrong, by name, in one table, and which one a request meets.

A scenario that an endpoint can't show falls back to the nearest thing that it can:
- an answer that isn't streamed is one body, sent in four parts: what cuts, stalls or splits a stream does the same to
  that body, what replaces an event replaces it whole, and an error inside a stream becomes that error's status;
- what only the Responses API has (`response_failed`, `error_event`) is `in_stream_error` on the others, and
  `response_incomplete` a finish reason `length`; `done_without_finish` sends Responses a `[DONE]` all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from aiohttp import web

from runner.errors import UsageError
from runner.simulator.exchange import Exchange
from runner.simulator.profile import Profile
from runner.simulator.rehearsal import Rehearsal, digest
from runner.simulator.scenarios import broken, garbled, refused, stalled


class Scenario(NamedTuple):
    """One thing that can go wrong."""

    summary: str
    run: Callable[[Exchange], Awaitable[web.StreamResponse]]
    harmless: bool = False
    """A client is to take it for the success that it is."""


def _statuses() -> dict[str, Scenario]:
    notes = {
        429: "rate_limit_exceeded, Retry-After 0.1 s or `retry_after_s`",
        502: "a proxy's HTML",
        504: "a proxy's HTML",
    }
    return {
        f"http_{status}": Scenario(f"status {status}: {notes.get(status, words.message)}", refused.http(status))
        for status, words in refused.STATUSES.items()
    }


def _retry_after(shape: str, value: Callable[[], str | None]) -> Scenario:
    return Scenario(f"429 whose Retry-After is {shape}", refused.retry_after(value))


SCENARIOS: Final[Mapping[str, Scenario]] = {
    # ── refused ──
    **_statuses(),
    "slow_down": Scenario(
        "429 slow_down: the rate grew too quickly",
        refused.refuse(429, "Slow down: your request rate grew too quickly.", "requests", "slow_down"),
    ),
    "overloaded": Scenario(
        "503 server_is_overloaded",
        refused.refuse(503, "The server is currently overloaded.", "server_error", "server_is_overloaded"),
    ),
    "insufficient_quota": Scenario(
        "429 insufficient_quota: the account is empty",
        refused.refuse(
            429,
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            "insufficient_quota",
        ),
    ),
    "context_length": Scenario(
        "400 context_length_exceeded",
        refused.refuse(
            400,
            "This model's maximum context length is 8192 tokens. Please reduce the length of the messages.",
            "invalid_request_error",
            "context_length_exceeded",
            "messages",
        ),
    ),
    "redirect_307": Scenario("307 to /redirected, which answers well: must not be followed", refused.redirect(307)),
    "redirect_302": Scenario("302 to /redirected, which answers well: must not be followed", refused.redirect(302)),
    "retry_after_none": _retry_after("missing", lambda: None),
    "retry_after_zero": _retry_after("0", lambda: "0"),
    "retry_after_negative": _retry_after("-1", lambda: "-1"),
    "retry_after_huge": _retry_after("1e9", lambda: "1e9"),
    "retry_after_inf": _retry_after("inf", lambda: "inf"),
    "retry_after_nan": _retry_after("nan", lambda: "nan"),
    "retry_after_past": _retry_after("a date an hour ago", refused.http_date(-3_600)),
    "retry_after_future": _retry_after("a date in ten years", refused.http_date(10 * 365 * 86_400)),
    "retry_after_broken": _retry_after("`soon`", lambda: "soon"),
    "echo_key_401": Scenario("401 whose message repeats the key that was sent", refused.echo_key_401),
    # ── broken connections and bodies ──
    "reset_before_headers": Scenario("RST before any answer", broken.reset_before_headers),
    "reset_mid_stream": Scenario("RST in the middle", broken.reset_mid_stream),
    "fin_mid_stream": Scenario("a clean end of the body in the middle", broken.fin_mid_stream),
    "cut_chunk": Scenario("the socket is closed inside a chunk of the HTTP body", broken.cut_chunk),
    "half_event": Scenario("a clean end inside an event", broken.half_event),
    "half_utf8": Scenario("a clean end inside a UTF-8 character", broken.half_utf8),
    "no_finish": Scenario("all content, then the end: no finish reason, no [DONE]", broken.no_finish),
    "done_without_finish": Scenario("all content and [DONE], but no finish reason", broken.done_without_finish),
    "finish_without_done": Scenario("everything but [DONE]", broken.finish_without_done, harmless=True),
    "html_200": Scenario("200 with a proxy's login page", broken.html_200),
    "json_error_200": Scenario("200 with an error object in JSON", broken.json_error_200),
    "empty_200": Scenario("200 with an empty body", broken.empty_200),
    "wrong_content_type": Scenario("the right body as application/octet-stream", broken.wrong_content_type),
    "gzip_200": Scenario("the right body with content-encoding gzip, asked for or not", broken.gzip_200),
    "gzip_bomb": Scenario("a gzip body of 1.2 MB that unpacks to 1.2 GB (`bytes`)", broken.gzip_bomb),
    "split_bytes": Scenario("the right answer, every byte its own write", broken.split_bytes, harmless=True),
    "coalesced": Scenario("the right answer in one write", broken.coalesced, harmless=True),
    # ── errors inside a stream ──
    "in_stream_error": Scenario("an error object inside a 200: server_error", garbled.in_stream_error),
    "in_stream_rate_limit": Scenario("an error object inside a 200: rate_limit_exceeded", garbled.in_stream_rate_limit),
    "error_event": Scenario("Responses' flat `error` event", garbled.error_event),
    "response_failed": Scenario("Responses' `response.failed`", garbled.response_failed),
    "response_incomplete": Scenario(
        "cut off as if the maximum were reached", garbled.response_incomplete, harmless=True
    ),
    # ── garbage ──
    "bad_json": Scenario("an event with broken JSON in place of content", garbled.bad_json),
    "bad_utf8": Scenario("an event with bytes that are no UTF-8", garbled.bad_utf8),
    "null_chunk": Scenario("an event that is null", garbled.null_chunk),
    "list_chunk": Scenario("an event that is a list", garbled.list_chunk),
    "wrong_types": Scenario("an event whose values have the wrong types", garbled.wrong_types),
    "nan_usage": Scenario("token counts that are NaN", garbled.nan_usage),
    "unknown_fields": Scenario("fields, comments and SSE lines nobody knows", garbled.unknown_fields, harmless=True),
    "huge_line": Scenario("one line of 200 MB (`bytes`)", garbled.huge_line),
    "endless": Scenario("content for ever, as fast as it is read or at `tokens_per_s`", garbled.endless),
    "empty_deltas": Scenario("a million empty deltas (`count`), then the answer", garbled.empty_deltas, harmless=True),
    # ── stalls: until the client leaves, an hour at most; with `delay_s` the answer goes on after it ──
    "slow_headers": Scenario("no answer at all (`delay_s`)", stalled.slow_headers),
    "stall_first": Scenario("headers, then nothing (`delay_s`)", stalled.stall_first),
    "stall_mid": Scenario("half of the answer, then nothing (`delay_s`)", stalled.stall_mid),
    "comments_forever": Scenario("keep-alive comments and nothing else", stalled.comments_forever),
    "one_byte_per_s": Scenario("the right answer, a byte a second (`delay_s`)", stalled.one_byte_per_s),
}
NAMES: Final = frozenset(SCENARIOS)
STORM: Final = "storm"
"""What the log calls the 429s of a storm; no scenario that a request can ask for."""


def check(profile: Profile) -> Profile:
    """The profile, if the scenarios that it names exist.

    Raises:
        UsageError: one doesn't.
    """
    for name in profile.fault_rates:
        if name not in SCENARIOS:
            raise UsageError(f"simulator: no scenario is called {name!r}; there are: {', '.join(SCENARIOS)}")
    return profile


def choose(profile: Profile, asked: Rehearsal, key: str, nth: int) -> str | None:
    """The scenario that a request meets, if any: its own, or else one by chance.

    Chance depends on the seed, the request's content and how many like it came before (`nth`, from 1), and not on
    the order in which requests arrive: two runs of the same jobs meet the same faults.
    """
    if asked.fault is not None:
        return asked.fault if asked.times is None or nth <= asked.times else None
    if not profile.fault_rates or (profile.fault_times is not None and nth > profile.fault_times):
        return None
    draw = digest(key, profile.seed, nth, 1) / 2**128
    for name, rate in profile.fault_rates.items():
        draw -= rate
        if draw < 0:
            return name
    return None


def storm_left_s(profile: Profile, since_s: float) -> float:
    """Seconds that a storm will still last, `since_s` after the first request; 0 between storms."""
    if profile.storm_period_s <= 0 or profile.storm_s <= 0:
        return 0.0
    return max(0.0, profile.storm_s - since_s % profile.storm_period_s)
