"""What a load test sends, from its options: a supply of jobs or of conversations, and the times of a trace.

Every process of a test makes it for itself, from the same options, seed and salt, and so has the same requests.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import anyio.to_thread

from runner.errors import UsageError
from runner.load.arrivals import Replay
from runner.load.conversations import Conversations, Recorded, SyntheticTalk
from runner.load.draws import Constant, Draw, parse_draw
from runner.load.draws import Recorded as RecordedLengths
from runner.load.options import LoadOptions
from runner.load.prompts import FromPool, OutputLength, Supply
from runner.load.reading import read_dialogues, read_jobs, read_sharegpt, read_trace
from runner.load.sender import Workload
from runner.load.synthetic import DEFAULT_INPUT, DEFAULT_OUTPUT, MAX_TOKENS, Synthetic
from runner.load.traces import Trace

MAX_TURNS: Final = 1_000
MAX_THINK_S: Final = 86_400


async def read_workload(options: LoadOptions, seed: int, salt: str) -> Workload:
    """Reads what the options name.

    Raises:
        UsageError: a distribution isn't one, or the sources contradict each other.
        InputError: a file can't be read.
    """
    trace = await _trace(options)
    replay = None if trace is None or not trace.times_s else Replay(trace.times_s, options.trace_speed)
    if options.trace is not None and replay is None:
        raise UsageError(f"{options.trace}: no column of it says when a request was sent")
    if options.sharegpt is not None:
        return await _sharegpt(options, seed, replay)
    if options.synthetic:
        return _synthetic(options, seed, salt, trace, replay)
    pool = await read_jobs(options.paths)
    name = ", ".join(options.paths)
    return Workload(FromPool(pool, name, "sample" if options.sample else "cycle", seed), trace=replay)


async def _trace(options: LoadOptions) -> Trace | None:
    if options.trace is None:
        return None
    return await anyio.to_thread.run_sync(partial(read_trace, options.trace, unit=options.trace_unit))


async def _sharegpt(options: LoadOptions, seed: int, replay: Replay | None) -> Workload:
    assert options.sharegpt is not None
    output = _output(options)
    if options.turns is None:
        read = partial(read_sharegpt, options.sharegpt, output, seed=seed, sample=options.sample)
        return Workload(await anyio.to_thread.run_sync(read), trace=replay)
    dialogues = await anyio.to_thread.run_sync(read_dialogues, options.sharegpt)
    return Workload(None, Recorded(dialogues, options.sharegpt, _think(options), seed, output), replay)


def _synthetic(options: LoadOptions, seed: int, salt: str, trace: Trace | None, replay: Replay | None) -> Workload:
    supply = Synthetic(
        _lengths(options.input_tokens, trace and trace.input_tokens, options.trace, DEFAULT_INPUT),
        _lengths(options.output_tokens, trace and trace.output_tokens, options.trace, DEFAULT_OUTPUT),
        shared=options.shared_prefix,
        seed=seed,
        salt=salt,
        output=_output(options),
    )
    if options.turns is None:
        return Workload(supply, trace=replay)
    return Workload(None, SyntheticTalk(supply, parse_draw(options.turns, maximum=MAX_TURNS), _think(options)), replay)


def _lengths(text: str | None, recorded: Any, name: str | None, default: Draw) -> Draw:
    """What the user said, else the trace's own lengths, else the default."""
    if text is not None:
        return parse_draw(text, maximum=MAX_TOKENS)
    return RecordedLengths(recorded, name or "") if recorded else default


def _output(options: LoadOptions) -> OutputLength:
    return OutputLength(options.exact_output, options.output_cap)


def _think(options: LoadOptions) -> Draw:
    return Constant(0) if options.think is None else parse_draw(options.think, maximum=MAX_THINK_S)


def describe(workload: Workload) -> dict[str, Any]:
    """`workload` of load.json."""
    source: Supply | Conversations | None = workload.conversations or workload.supply
    assert source is not None
    return source.describe()
