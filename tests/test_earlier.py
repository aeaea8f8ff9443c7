"""What is found in deltas.jsonl of a background response: right, bounded, and never an error."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import orjson
import pytest

from runner import earlier
from runner.digests import id_key
from runner.earlier import EarlierDeltas, Found, marks
from runner.files import OsFiles
from runner.jobs import Api
from tests.scripted import chat_job
from tests.test_reattach import WORDS, numbered


def job_of(name: str, *, digest: int = 1, stream: bool = True):
    return chat_job(id=name, api=Api.RESPONSES, body={"background": True}, digest=digest, stream=stream)


def lines_of(name: str, *, count: int | None = None, attempt: int = 1, digest: int = 1) -> list[bytes]:
    """Lines as the worker writes them."""
    id_json, lines = orjson.dumps(name), []
    for seq, event in enumerate(numbered(f"r-{name}"[:20])[:count]):
        marked = marks(job_of(name, digest=digest), "e") if seq == 0 else b""
        delta = orjson.dumps({**event, "response": {"id": f"r-{name}"[:20]}} if seq == 0 else event)
        head = b'{"custom_id":%b,"attempt":%d,%b"seq":%d' % (id_json, attempt, marked, seq)
        lines.append(b'%b,"t":%.6f,"delta":%b}\n' % (head, seq / 10, delta))
    return lines


def void(name: str) -> bytes:
    return orjson.dumps({"custom_id": name, "attempt": 1, "event": "void", "reason": "x"}) + b"\n"


def reading(path: Path, data: bytes, done: frozenset[str] = frozenset()) -> EarlierDeltas:
    path.write_bytes(data)
    keys = {id_key(name) for name in done}
    return EarlierDeltas(OsFiles(), path, lambda key: key in keys)


async def found_in(path: Path, lines: list[bytes], name: str = "j", **kwargs) -> Found | None:
    return await reading(path, b"".join(lines)).of(job_of(name, **kwargs))


async def test_a_text_is_rebuilt_as_far_as_it_stands(tmp_path):
    for count in range(1, len(WORDS) + 3):
        found = await found_in(tmp_path / "d", lines_of("j", count=count, attempt=3))
        assert found is not None
        assert found.stored is not None
        assert (found.id, found.endpoint, found.attempt) == ("r-j", "e", 3)
        said = "".join(WORDS[: max(0, count - 2)])
        stored = found.stored
        assert (stored.said, stored.seq, stored.text.last) == (said, count, count - 1)
        assert stored.text.t_s == pytest.approx((count - 1) / 10)
        assert (stored.text.chunks, stored.text.chars) == (max(0, count - 2), len(said))
        assert stored.finish is None


async def test_texts_that_are_mixed_with_others_are_told_apart(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    names = ["j", "ünïcode", 'quo"te\\', "x" * 500, '","attempt":1,"digest":"', "\n", "j2"]
    todo = {name: lines_of(name, count=rng.randrange(1, 10)) for name in names}
    counts = {name: len(lines) for name, lines in todo.items()}
    mixed: list[bytes] = []
    while any(todo.values()):
        name = rng.choice([name for name in names if todo[name]])
        mixed.append(todo[name].pop(0))
        mixed.append(
            b'{"custom_id":"chat","attempt":1,"seq":0,"t":0.1,"delta":{"index":0,"content":"\\"digest\\":"}}\n'
        )
    deltas = reading(tmp_path / "d", b"".join(mixed))
    for name in rng.sample(names, len(names)):
        found = await deltas.of(job_of(name))
        assert found is not None, name
        assert found.stored is not None
        assert found.stored.seq == counts[name]
        assert await deltas.of(job_of(name)) is None  # once


async def test_however_a_file_is_torn_it_is_whole_or_known_not_to_be(tmp_path):
    whole = b"".join(lines_of("j"))
    first = whole.index(b"\n") + 1
    for at in range(0, len(whole), 7):
        found = await found_in(tmp_path / "d", [whole[:at]])
        if at < first:
            assert found is None
            continue
        assert found is not None
        assert found.stored is not None  # a torn last line has no newline, and is none
        assert found.stored.seq == whole[:at].count(b"\n")


async def test_a_hole_is_noticed_wherever_it_is(tmp_path):
    lines = lines_of("j")
    for at in range(1, len(lines) - 1):
        for hole in ([], [lines[at][: len(lines[at]) // 2] + b"\n"], [lines[at].replace(b'"seq":', b'"seq":1')]):
            found = await found_in(tmp_path / "d", [*lines[:at], *hole, *lines[at + 1 :]])
            assert found is not None
            assert found.stored is None


async def test_the_last_text_counts_and_a_void_ends_one(tmp_path):
    again = [*lines_of("j", count=5), void("j"), *lines_of("j", count=3, attempt=2)]
    found = await found_in(tmp_path / "d", again)
    assert found is not None
    assert found.stored is not None
    assert (found.attempt, found.stored.seq) == (2, 3)
    found = await found_in(tmp_path / "d", [*lines_of("j", count=5), void("j"), void("j")])
    assert found is not None
    assert found.stored is None


async def test_who_asks_something_else_or_is_done_or_was_never_there_finds_nothing(tmp_path):
    lines = lines_of("j")
    assert await found_in(tmp_path / "d", lines, digest=2) is None
    assert await found_in(tmp_path / "d", lines, name="other") is None
    deltas = reading(tmp_path / "d", b"".join(lines), frozenset({"j"}))
    assert await deltas.of(job_of("j")) is None


async def test_what_can_not_be_read_is_nothing(tmp_path):
    (tmp_path / "d").mkdir()
    deltas = EarlierDeltas(OsFiles(), tmp_path / "d", lambda key: False)
    assert await deltas.of(job_of("j")) is None


async def test_beyond_the_bounds_a_text_is_fetched_anew_and_then_no_more(tmp_path, monkeypatch):
    lines = [line for i in range(5) for line in lines_of(f"j{i}", count=4)]
    monkeypatch.setattr(earlier, "MAX_PLACES", 10)
    deltas = reading(tmp_path / "d", b"".join(lines))
    found = [await deltas.of(job_of(f"j{i}")) for i in range(5)]
    assert [each is not None and each.stored is not None for each in found].count(True) == 2
    assert all(found)
    monkeypatch.setattr(earlier, "MAX_RESPONSES", 3)
    deltas = reading(tmp_path / "d", b"".join(lines))
    assert Counter([await deltas.of(job_of(f"j{i}")) is None for i in range(5)]) == {False: 3, True: 2}


async def test_a_line_of_any_length_is_read_and_an_endless_one_is_not_held(tmp_path, monkeypatch):
    long = lines_of("j", count=3)
    event = orjson.loads(long[2])
    event["delta"]["delta"] = "x" * 300_000
    found = await found_in(tmp_path / "d", [*long[:2], orjson.dumps(event) + b"\n"])
    assert found is not None
    assert found.stored is not None
    assert found.stored.text.chars == 300_000
    monkeypatch.setattr(earlier, "_MAX_LINE_BYTES", 1_000_000)
    held: list[int] = []
    files = OsFiles()

    class Counting(OsFiles):
        def read(self, fd, size, offset):
            held.append(size)
            return files.read(fd, size, offset)

    (tmp_path / "d").write_bytes(b"".join(long) + b"z" * 50_000_000)
    deltas = EarlierDeltas(Counting(), tmp_path / "d", lambda key: False)
    assert await deltas.of(job_of("j")) is not None
    assert sum(held) < 5_000_000
