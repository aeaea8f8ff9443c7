"""The files that a load test draws from: jobs, ShareGPT, traces. Blocks: run it in a thread, but for `read_jobs`.

Compressed files are read as they are, by their suffix; the errors name the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from runner.errors import InputError
from runner.limits import READ_BLOCK_BYTES
from runner.load.prompts import FromPool, JobPool, OutputLength
from runner.load.sharegpt import Dialogue, dialogues, first_turn
from runner.load.traces import Trace, Unit, parse_trace
from runner.source import JobSource, input_errors, open_input

MAX_DIALOGUES: Final = 20_000
"""Conversations held for several turns: ShareGPT_V3's have about 10 kB each."""


async def read_jobs(paths: Sequence[str]) -> JobPool:
    """The jobs of some files.

    Raises:
        InputError: a file can't be read, or there is no job in them.
    """
    pool = JobPool()
    async for batch in JobSource(paths).batches():
        for item in batch:
            pool.add(item)
    if not pool.jobs:
        raise InputError(f"{', '.join(paths)}: no job to send ({pool.rejected} lines can't be jobs)")
    return pool


def read_sharegpt(path: str, output: OutputLength, *, seed: int = 0, sample: bool = False) -> FromPool:
    """First turns of a file in ShareGPT's form, those that vLLM's benchmark would take.

    Raises:
        InputError: it can't be read, isn't JSON or holds none.
    """
    pool = JobPool()
    for k, dialogue in enumerate(found for found in _dialogues(path) if found.usual):
        pool.add(first_turn(dialogue, k, output))
    if not pool.jobs:
        raise InputError(f"{path}: no conversation whose first turn is of a usual length")
    return FromPool(pool, path, "sample" if sample else "cycle", seed, source="sharegpt")


def read_dialogues(path: str, *, wanted: Callable[[Dialogue], bool] = lambda _: True) -> list[Dialogue]:
    """Conversations of a file in ShareGPT's form, the first MAX_DIALOGUES that are wanted.

    Raises:
        InputError: it can't be read, isn't JSON or holds none.
    """
    found: list[Dialogue] = []
    for dialogue in _dialogues(path):
        if wanted(dialogue):
            found.append(dialogue)
            if len(found) >= MAX_DIALOGUES:
                break
    if not found:
        raise InputError(f"{path}: no conversation in it")
    return found


def read_trace(path: str, *, unit: Unit | None = None) -> Trace:
    """A trace of send times, lengths or both.

    Raises:
        InputError: it can't be read or is none.
    """
    with open_input(path) as file, input_errors(path):
        return parse_trace(file, path, unit=unit)


def _dialogues(path: str) -> Iterator[Dialogue]:
    with open_input(path) as file, input_errors(path):
        blocks = iter(lambda: file.read(READ_BLOCK_BYTES), b"")
        yield from dialogues(codecs.iterdecode(blocks, "utf-8", "replace"), path)
