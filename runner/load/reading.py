"""The files that a load test draws from: jobs, ShareGPT, traces. Blocks: run it in a thread, but for `read_jobs`.

Compressed files are read as they are, by their suffix; the errors name the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from runner.errors import InputError
from runner.limits import READ_BLOCK_BYTES
from runner.load.prompts import FromPool, JobPool, OutputLength
from runner.load.sharegpt import MAX_PROMPT_TOKENS, MAX_TOTAL_TOKENS, MIN_TOKENS, Dialogue, dialogues, first_turn
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
        why = f"; lines that can't be jobs: {pool.rejected}, `python -m runner check` says why" if pool.rejected else ""
        raise InputError(f"{', '.join(paths)}: no job to send{why}")
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
        raise InputError(
            f"{path}: no conversation in ShareGPT's form with a first prompt and answer of {MIN_TOKENS} tokens "
            f"at least, the prompt of {MAX_PROMPT_TOKENS} and both of {MAX_TOTAL_TOKENS} at most"
        )
    return FromPool(pool, path, "sample" if sample else "cycle", seed, source="sharegpt")


def read_dialogues(path: str) -> list[Dialogue]:
    """Conversations of a file in ShareGPT's form, the first MAX_DIALOGUES.

    Raises:
        InputError: it can't be read, isn't JSON or holds none.
    """
    found = list(islice(_dialogues(path), MAX_DIALOGUES))
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
