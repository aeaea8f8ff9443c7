"""An ended job → one line of results.jsonl, in the Batch API's output shape. Pure.

Success ⇔ `error` is null. `runner.digest` is what recovery compares to see that a known id still asks the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from runner.faults import Fault
from runner.jobs import Job, Rejected
from runner.outcome import Completed, Outcome, Usage

if TYPE_CHECKING:
    from runner.attempt import Attempted


class Retry(NamedTuple):
    """An attempt that failed and was followed by another."""

    attempt: int
    reason: str  # the fault's kind
    message: str
    status: int | None
    endpoint: str | None = None


@dataclass(slots=True)
class History:
    """What happened to one job before and between its attempts."""

    model: str | None
    """The model asked for; the record prefers the one that answered."""
    endpoint: str | None = None
    """Where the last attempt went."""
    attempts: int = 0
    queue_s: float = 0.0
    """From being read to the last attempt's admission, backoff included."""
    limiter_wait_s: float = 0.0
    """The part of it spent waiting for RPM, TPM or a cool-down."""
    admitted_s: float | None = None
    """Monotonic, of the last attempt."""
    started: datetime | None = None
    """UTC, of the last attempt."""
    retries: list[Retry] = field(default_factory=list)


def record_line(record: Mapping[str, Any]) -> bytes:
    """The bytes of a record, newline included."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def of_job(
    job: Job,
    history: History,
    attempted: Attempted | None,
    outcome: Outcome,
    *,
    cost: float | None = None,
    unwanted: Fault | None = None,
) -> dict[str, Any]:
    """The final record of a job.

    `attempted` is its last attempt, None when it was never sent. `unwanted` makes a failure of an answer that ended
    in a way the user counts as one; the answer itself stays in the record.
    """
    record: dict[str, Any] = {"id": job.id, "custom_id": job.id}
    if isinstance(outcome, Completed):
        record["response"] = {
            "status_code": attempted.status if attempted else None,
            "request_id": attempted.request_id if attempted else None,
            "body": outcome.body,
        }
        record["error"] = None if unwanted is None else error_of(unwanted, None)
    else:
        record["response"] = _refusal(outcome.fault)
        record["error"] = error_of(outcome.fault, outcome.partial)
    if job.metadata is not None:
        record["metadata"] = job.metadata
    record["runner"] = _runner(job, history, attempted, outcome, cost)
    return record


def of_rejected(line: Rejected) -> dict[str, Any]:
    """The final record of a line that can't be a job; nothing was sent."""
    record: dict[str, Any] = {
        "id": line.id,
        "custom_id": line.custom_id,
        "response": None,
        "error": {"code": line.code, "message": line.reason, "line": line.line},
    }
    if line.metadata is not None:
        record["metadata"] = line.metadata
    record["runner"] = {"attempts": 0, "line": line.line, "digest": None, "usage": None, "finish": None, "retries": []}
    return record


def error_of(fault: Fault, partial: dict[str, Any] | None) -> dict[str, Any]:
    """The `error` object: `code` is the fault's kind, `server_code` the server's own word for it."""
    error: dict[str, Any] = {"code": fault.kind.value, "message": fault.message, "whose": fault.row.whose}
    if fault.status is not None:
        error["status_code"] = fault.status
    if fault.server_code is not None:
        error["server_code"] = fault.server_code
    if partial is not None:
        error["partial"] = partial
    return error


def _refusal(fault: Fault) -> dict[str, Any] | None:
    """The HTTP answer of a request that the server refused; None where no such answer came."""
    if fault.status is None:
        return None
    return {"status_code": fault.status, "request_id": fault.request_id, "body": fault.body}


def _runner(
    job: Job, history: History, attempted: Attempted | None, outcome: Outcome, cost: float | None
) -> dict[str, Any]:
    model, finish = history.model, None
    if isinstance(outcome, Completed):
        answered, finish = outcome.body.get("model"), outcome.finish
        model = answered if isinstance(answered, str) else model
    return {
        "attempts": history.attempts,
        "line": job.line,
        "digest": f"{job.digest:016x}",
        "endpoint": history.endpoint,
        "model": model,
        "started": history.started,  # orjson writes what isoformat() would
        "queue_s": _rounded(history.queue_s),
        "limiter_wait_s": _rounded(history.limiter_wait_s),
        "ttft_s": _rounded(attempted.ttft_s) if attempted else None,
        "duration_s": _rounded(attempted.duration_s) if attempted else None,
        "chunks": attempted.chunks if attempted else 0,
        "icl": _gaps(attempted),
        "usage": _usage(outcome.usage),
        "cost": cost,
        "finish": finish,
        "retries": [retry._asdict() for retry in history.retries],
    }


def _gaps(attempted: Attempted | None) -> dict[str, float | None] | None:
    """Gaps between content chunks in seconds; None where there were fewer than two chunks."""
    if attempted is None or attempted.chunks < 2 or attempted.gaps.count == 0:
        return None
    gaps = attempted.gaps
    return {"p50": _rounded(gaps.quantile(0.5)), "p99": _rounded(gaps.quantile(0.99)), "max": _rounded(gaps.max)}


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def _rounded(seconds: float | None) -> float | None:
    """To microseconds. round(seconds, 6) says the same by way of the decimal text, which takes four times as long."""
    return None if seconds is None else round(seconds * 1e6) / 1e6
