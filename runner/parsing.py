"""A line of a jobs file → `Job` or `Rejected`, whatever the line holds. Pure.

The forms are told apart by their keys, the first of these that is there: `body` is the Batch API's form, `messages` a
chat body, `input` a Responses body, `prompt` the short form. Beside a raw body, `url` names the API. Whatever garbage
comes, one of the two comes out, and all of it can be written as JSON again.

An id belongs to the first line that names it, be that a job or not. Without one it is derived from all that the line
asks and its metadata, so that two lines which differ in their metadata alone are two jobs wherever they stand. The
digest, by which a changed line is known again under its id, covers only what is asked.

Accepted: duplicate keys in an object, of which the last wins as in every JSON parser; integers beyond 64 bits, which
become floats; an integer as custom_id, which becomes its decimal text; keys beside `body` that aren't ours, which are
left out as the Batch API does.
"""

from __future__ import annotations

import enum
import re
from hashlib import blake2b
from typing import Any, Final

import orjson

from runner.digests import DigestMap, DigestSet, digest64, id_key
from runner.jobs import Api, Job, Rejected, StopAfter
from runner.limits import MAX_CHOICES, MAX_CUSTOM_ID_CHARS, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_LINE_BYTES
from runner.lines import Line

_APIS: Final = {f"{prefix}{api.value}": api for api in Api for prefix in ("", "/v1")}
_RESERVED_ID: Final = re.compile(r"line-[0-9a-f]{32}")
_TELLING: Final = (("messages", Api.CHAT), ("input", Api.RESPONSES), ("prompt", Api.CHAT))
_OURS: Final = frozenset({"custom_id", "id", "metadata", "stop_after", "method", "url", "stream"})


class Reason(enum.Enum):
    """Why a line can't be a job: `error.code` of its record, and what that means."""

    LINE_TOO_LONG = "the line is longer than a request may be"
    INVALID_UTF8 = "the line isn't UTF-8"
    INVALID_JSON = "the line isn't JSON"
    INVALID_UNICODE = "a string holds half of a surrogate pair"
    TOO_MANY_VALUES = "the JSON holds too many values"
    TOO_DEEP = "the JSON is nested too deeply"
    NOT_AN_OBJECT = "the line is JSON, but no object"
    INVALID_CUSTOM_ID = "custom_id isn't a usable string"
    DUPLICATE_CUSTOM_ID = "an earlier line has this custom_id"
    UNKNOWN_FORM = "none of body, messages, input or prompt is there"
    INVALID_METHOD = "method isn't POST"
    INVALID_URL = "url isn't one of the four APIs"
    INVALID_BODY = "body isn't an object"
    INVALID_MESSAGES = "messages isn't a list of objects with a role"
    INVALID_PROMPT = "prompt or system isn't a string"
    INVALID_INPUT = "input is missing or of the wrong type"
    INVALID_MODEL = "model isn't a usable string"
    INVALID_N = "n isn't a usable number"
    INVALID_STREAM = "stream isn't true or false"
    INVALID_STREAM_OPTIONS = "stream_options isn't an object"
    INVALID_STOP_AFTER = 'stop_after isn\'t {"chunks": N} or {"chars": N} of a streamed job'


class _Reject(Exception):
    """Raised within a line's parsing when it can't be a job."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail


class JobParser:
    """Parses the lines of one input in order; it remembers ids and contents that were seen."""

    def __init__(self, source: str = "jobs", *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.source = source
        """Names the file in reasons."""
        self._max_line_bytes = max_line_bytes
        self._seen = DigestSet()
        self._repeated = DigestMap()
        """How often each key came after its first time."""

    def parse(self, line: Line) -> Job | Rejected:
        """The job of a line, or why it isn't one."""
        given: str | None = None
        metadata: Any = None
        try:
            value = _load(line, self._max_line_bytes)
            metadata = value.get("metadata")
            given = self._claimed(_custom_id(value))
            return self._job(line, value, given)
        except _Reject as error:
            return self._rejected(line, error, given, metadata)

    def _job(self, line: Line, value: dict[str, Any], given: str | None) -> Job:
        api, body = _form(value)
        stream = _stream(api, value)
        _check_body(api, body)
        stop_after = _stop_after(value.get("stop_after"), stream)
        metadata = value.get("metadata")
        asked = [api.path, body, stream, value.get("stop_after")]
        return Job(
            id=self._derived_id(_canonical([*asked, metadata])) if given is None else given,
            line=line.number,
            api=api,
            body=body,
            stream=stream,
            digest=digest64(_canonical(asked)),
            size_bytes=line.size_bytes,
            metadata=metadata,
            stop_after=stop_after,
        )

    # ── Ids ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _claimed(self, given: str | None) -> str | None:
        """The same, once and never again."""
        if given is not None and not self._seen.add(id_key(given)):
            raise _Reject(Reason.DUPLICATE_CUSTOM_ID, _shown(given))
        return given

    def _count(self, key: int) -> int:
        """Counts a key; how often it had come before."""
        return 0 if self._seen.add(key) else 1 + self._repeated.increment(key)

    def _derived_id(self, content: bytes) -> str:
        """The id of a line that has none. The id of the first occurrence also counts the others: one entry a line."""
        first = _derived("job", content, 0)
        while occurrence := self._count(id_key(first)):
            name = _derived("job", content, occurrence)
            # A line may have been given this very id by hand; then it is that line's.
            if not self._count(id_key(name)):
                return name
        return first

    def _rejected(self, line: Line, error: _Reject, given: str | None, metadata: Any) -> Rejected:
        raw = line.digest if line.data is None else line.data
        occurrence = self._count(digest64(b"\xff" + raw))  # in UTF-8 no id begins so
        detail = f" ({error.detail})" if error.detail else ""
        # A file name is bytes: what isn't UTF-8 in it stands in the text as a lone surrogate, which JSON can't hold.
        source = self.source.encode("utf-8", "backslashreplace").decode()
        return Rejected(
            id=_derived("line", raw, occurrence),
            line=line.number,
            code=error.reason.name.lower(),
            reason=f"{source}:{line.number}: {error.reason.value}{detail}",
            custom_id=given,
            metadata=metadata,
        )


def _derived(kind: str, content: bytes, occurrence: int) -> str:
    digest = blake2b(content, digest_size=16, salt=occurrence.to_bytes(8, "big"))
    return f"{kind}-{digest.hexdigest()}"


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _load(line: Line, max_bytes: int) -> dict[str, Any]:
    data = line.data
    if data is None:
        raise _Reject(Reason.LINE_TOO_LONG, f"{line.size_bytes} bytes, at most {max_bytes}")
    # Before they are made, hence counted roughly: what stands in a string counts too.
    opened = data.count(b"[") + data.count(b"{")
    if len(data) > MAX_JSON_VALUES and opened + data.count(b",") > MAX_JSON_VALUES:
        raise _Reject(Reason.TOO_MANY_VALUES, f"more than {MAX_JSON_VALUES}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _why_not_json(data, str(error)) from None
    if not isinstance(value, dict):
        raise _Reject(Reason.NOT_AN_OBJECT, f"it is {type(value).__name__}")
    if opened > MAX_JSON_DEPTH and _depth_exceeds(value, MAX_JSON_DEPTH):
        raise _Reject(Reason.TOO_DEEP, f"more than {MAX_JSON_DEPTH} levels")
    return value


def _why_not_json(data: bytes, message: str) -> _Reject:
    lowered = message.lower()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Reject(Reason.INVALID_UTF8, f"at byte {error.start}")
    if "recursion" in lowered or "depth" in lowered:
        return _Reject(Reason.TOO_DEEP, message[:200])
    if "surrogate" in lowered:
        return _Reject(Reason.INVALID_UNICODE, message[:200])
    return _Reject(Reason.INVALID_JSON, message[:200])


def _depth_exceeds(value: Any, bound: int) -> bool:
    level = [value]
    for _ in range(bound):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _canonical(value: Any) -> bytes:
    """One spelling: key order and white space don't count."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _shown(value: Any) -> str:
    """An excerpt for a reason."""
    return repr(value[:80]) if isinstance(value, str) else f"it is {type(value).__name__}"


# ── Forms ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _custom_id(value: dict[str, Any]) -> str | None:
    given = value.get("custom_id")
    if given is None:
        given = value.get("id")
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or not given or len(given) > MAX_CUSTOM_ID_CHARS:
        raise _Reject(Reason.INVALID_CUSTOM_ID, f"a string of 1 to {MAX_CUSTOM_ID_CHARS} characters is wanted")
    if _RESERVED_ID.fullmatch(given):
        raise _Reject(Reason.INVALID_CUSTOM_ID, "ids of this form are those of lines that can't be jobs")
    return given


def _form(value: dict[str, Any]) -> tuple[Api, dict[str, Any]]:
    api = _url(value)
    if "body" in value:
        return _batch(value["body"], api)
    body = {key: inner for key, inner in value.items() if key not in _OURS}
    if api is None:
        api = _told_by_keys(body)
    if "messages" not in body and "prompt" in body and api is Api.CHAT:
        return api, _short(body)
    return api, body


def _url(value: dict[str, Any]) -> Api | None:
    """The API that a line names, if it names one."""
    method, url = value.get("method"), value.get("url")
    if method is not None and method != "POST":
        raise _Reject(Reason.INVALID_METHOD, _shown(method))
    api = _APIS.get(url) if isinstance(url, str) else None
    if url is not None and api is None:
        raise _Reject(Reason.INVALID_URL, _shown(url))
    return api


def _told_by_keys(body: dict[str, Any]) -> Api:
    for key, api in _TELLING:
        if key in body:
            return api
    raise _Reject(Reason.UNKNOWN_FORM)


def _batch(body: Any, api: Api | None) -> tuple[Api, dict[str, Any]]:
    if not isinstance(body, dict):
        raise _Reject(Reason.INVALID_BODY)
    if api is None:
        raise _Reject(Reason.INVALID_URL, "the Batch form needs a url")
    return api, {key: value for key, value in body.items() if key != "stream"}


def _short(body: dict[str, Any]) -> dict[str, Any]:
    prompt, system = body.pop("prompt"), body.pop("system", None)
    if not isinstance(prompt, str) or not (system is None or isinstance(system, str)):
        raise _Reject(Reason.INVALID_PROMPT)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, **body}


def _stream(api: Api, value: dict[str, Any]) -> bool:
    inner = value["body"].get("stream") if isinstance(value.get("body"), dict) else None
    given = value.get("stream") if inner is None else inner
    if given is not None and not isinstance(given, bool):
        raise _Reject(Reason.INVALID_STREAM)
    return api is not Api.EMBEDDINGS and given is not False


def _check_body(api: Api, body: dict[str, Any]) -> None:
    model = body.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        raise _Reject(Reason.INVALID_MODEL)
    n = body.get("n")
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_CHOICES):
        raise _Reject(Reason.INVALID_N, f"1 to {MAX_CHOICES}")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _Reject(Reason.INVALID_STREAM_OPTIONS)
    if api is Api.CHAT:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise _Reject(Reason.INVALID_MESSAGES)
    elif api is Api.COMPLETIONS:
        if not isinstance(body.get("prompt"), str | list):
            raise _Reject(Reason.INVALID_PROMPT, "a string or a list is wanted")
    elif not isinstance(body.get("input"), str | list) and not (api is Api.RESPONSES and "prompt" in body):
        raise _Reject(Reason.INVALID_INPUT, "a string or a list is wanted")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _stop_after(value: Any, stream: bool) -> StopAfter | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) != 1 or not stream:
        raise _Reject(Reason.INVALID_STOP_AFTER)
    ((unit, count),) = value.items()
    if unit not in ("chunks", "chars") or not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise _Reject(Reason.INVALID_STOP_AFTER)
    return StopAfter(**{unit: count})
