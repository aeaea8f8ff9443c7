"""Blocks that wait for each other: a steady stream is taken a fifth of a second at a time, and nothing else changes."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import httpx2
import pytest

from runner.attempt import run_attempt
from runner.deadlines import Deadlines
from runner.faults import FaultKind
from runner.jobs import StopAfter
from runner.limits import DRAIN_TIMEOUT_S, GATHER_BYTES, GATHER_S, MAX_GATHER_S
from runner.native.body import Body
from runner.outcome import Completed, Failed
from runner.sse import Decoder
from runner.testing.virtual_time import run_virtual
from tests.scripted import ListSink, chat_chunk, chat_job, sse

TEXTS = [sse(chat_chunk(f" wörd {number} \n")) for number in range(60)]
FINISH, DONE = sse(chat_chunk(finish="stop")), sse("[DONE]")


class Source:
    """A connection that does nothing but remember that it was given up."""

    aborted = False

    def resume(self):
        pass

    def abort(self):
        self.aborted = True


class Seen(ListSink):
    """Keeps when it was given what, and the time at which that had come."""

    def __init__(self, *, is_live=False):
        super().__init__()
        self.is_live = is_live
        self.at: list[tuple[float, float]] = []

    def delta(self, delta, t_s):
        super().delta(delta, t_s)
        self.at.append((now(), t_s))

    def texts(self, texts):
        super().texts(texts)
        self.at += [(now(), after_ns / 1e9) for after_ns in texts.after_ns]

    @property
    def waited(self):
        """How long each delta waited until it was handed on."""
        return [at - came for at, came in self.at]


def now():
    return asyncio.get_running_loop().time()


def attempt(script, *, sink=None, deadlines=None, gathers=True, **job):
    """Runs one attempt whose body is fed (seconds, bytes); None ends it, an exception breaks it."""
    sink = sink or Seen()
    bodies: list[Any] = []

    class Plain(Body):
        gathers = property(lambda self: False, lambda self, value: None)

    async def main():
        body = (Body if gathers else Plain)(Source(), 0)
        bodies.append(body)
        body.open(200, [(b"content-type", b"text/event-stream")], 0)

        class Client:
            async def post(self, api, content, *, stream):
                return body

        async def feed():
            for at_s, block in script:
                await asyncio.sleep(at_s - now())
                if isinstance(block, bytes):
                    body.put(block, round(now() * 1e9))
                else:
                    body.end(block)
                body.wake()

        feeding = asyncio.ensure_future(feed())
        attempted = await run_attempt(
            Client(),
            chat_job(**job),
            b"",
            choices=1,
            deadlines=deadlines or Deadlines(),
            sink=sink,
            on_headers=lambda response: None,
        )
        ended_s = now()
        feeding.cancel()
        return attempted, ended_s

    attempted, ended_s = run_virtual(main)
    return attempted, sink, ended_s


def steady(blocks, gap_s=0.02, start_s=1.0):
    return [(start_s + number * gap_s, block) for number, block in enumerate(blocks)]


def test_the_texts_of_a_steady_stream_are_handed_on_together_and_none_waits_longer_than_it_may():
    attempted, sink, ended_s = attempt([*steady([*TEXTS, FINISH, DONE]), (2.22, None)])
    assert isinstance(attempted.outcome, Completed)
    assert "".join(delta.text for delta in sink.deltas) == "".join(f" wörd {number} \n" for number in range(60))
    assert max(sink.waited) <= GATHER_S + 1e-6
    assert len({at for at, _ in sink.at}) <= 60 * 0.02 / GATHER_S + 5, "they came one by one"
    assert ended_s == pytest.approx(1.0 + 61 * 0.02), "the end had to wait"


@pytest.mark.parametrize(
    ("head", "end"),
    [
        (b"data:", b"\n\n"),
        (b"data: ", b"\r\n\r\n"),
        (b"event: message\r\ndata:", b"\r\n\r\n"),
        (b": a\ndata: ", b"\nid: 1\n\n"),
        (b"data: ", b"\n\n: keep-alive\n\n"),
    ],
)
def test_a_stream_is_taken_together_in_whatever_frame_its_events_are(head, end):
    blocks = [head + event[6:-2] + end for event in (*TEXTS, FINISH, DONE)]
    attempted, sink, _ = attempt(steady(blocks))
    assert isinstance(attempted.outcome, Completed)
    assert [delta.text for delta in sink.deltas] == [f" wörd {number} \n" for number in range(60)]
    assert [came for _, came in sink.at] == pytest.approx([1.0 + 0.02 * number for number in range(60)])
    assert len({at for at, _ in sink.at}) <= 60 * 0.02 / GATHER_S + 5, "they came one by one"


DATA = [sse(chat_chunk(text))[6:-2] for text in "abcdef"]


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        # The comment repeats the data, and then it alone goes on.
        ([b": %b\ndata: %b\n\n" % (said, DATA[0]) for said in [*DATA[:1] * 4, *DATA[1:]]], "a" * 9),
        # What completed an event is no event.
        ([b"data: ", DATA[0] + b"\n\n", b"data: ", DATA[1] + b"\n\n", DATA[2] + b"\n\n"], "ab"),
        # What stands behind one is the beginning of the next.
        ([b"data: %b\n\nda" % DATA[0], b"ta: %b\n\n" % DATA[1]] * 4, "ab" * 4),
    ],
    ids=["comment", "rest", "beginning"],
)
def test_what_stands_round_the_data_of_an_event_is_taken_for_no_more_than_that(blocks, text):
    _, sink, _ = attempt(steady([*blocks, FINISH, DONE]))
    assert "".join(delta.text for delta in sink.deltas) == text


def test_each_has_the_time_at_which_it_came():
    attempted, sink, _ = attempt(steady([*TEXTS, FINISH, DONE]))
    assert [came for _, came in sink.at] == pytest.approx([1.0 + 0.02 * number for number in range(60)])
    assert attempted.gaps.count == 59
    assert (attempted.gaps.min, attempted.gaps.max) == (pytest.approx(0.02), pytest.approx(0.02))
    assert attempted.ttft_s == pytest.approx(1.0)
    assert (attempted.last_content_ns / 1e9, attempted.coalesced) == (pytest.approx(1.0 + 0.02 * 59), 0)


def test_an_event_that_comes_in_two_blocks_came_with_the_second(monkeypatch):
    monkeypatch.setattr("runner.native.body._SHARES", itertools.repeat(1.0))
    first, rest = TEXTS[7][:30], TEXTS[7][30:]
    _, sink, _ = attempt(steady([*TEXTS[:7], first, rest + TEXTS[8], *TEXTS[9:20], FINISH, DONE]))
    assert [came for _, came in sink.at[7:9]] == pytest.approx([1.0 + 0.02 * 8] * 2)


@pytest.mark.parametrize("end", [None, httpx2.ReadError("reset")], ids=["ended", "broken"])
def test_what_was_waiting_when_the_stream_ended_is_taken_first(end):
    attempted, sink, ended_s = attempt([*steady(TEXTS[:13]), (1.245, end)])
    assert isinstance(attempted.outcome, Failed)
    assert (len(sink.deltas), attempted.chunks) == (13, 13)
    assert attempted.outcome.partial is not None
    assert attempted.outcome.partial["choices"][0]["message"]["content"].endswith(" wörd 12 \n")
    assert ended_s == pytest.approx(1.245)


def test_what_was_waiting_when_a_deadline_passed_had_come_before_it(monkeypatch):
    monkeypatch.setattr("runner.native.body._SHARES", itertools.repeat(1.0))
    deadlines = Deadlines(first_token_s=5, idle_s=0.3)
    _, sink, ended_s = attempt(steady(TEXTS[:10]), deadlines=deadlines)
    assert ended_s == pytest.approx(sink.at[-1][0] + 0.3)
    late = [*steady(TEXTS[:10]), (ended_s - 0.01, TEXTS[10])]
    attempted, sink, ended_s = attempt(late, deadlines=deadlines)
    assert isinstance(attempted.outcome, Failed)
    assert attempted.outcome.fault.kind is FaultKind.IDLE_TIMEOUT
    assert len(sink.deltas) == 11
    assert late[-1][0] + 0.3 <= ended_s <= late[-1][0] + 0.3 + GATHER_S


def test_a_connection_that_stays_open_behind_the_end_delays_nothing():
    _, _, ended_s = attempt(steady([*TEXTS, FINISH, DONE]))
    assert ended_s == pytest.approx(1.0 + 61 * 0.02 + DRAIN_TIMEOUT_S)


def test_a_slow_stream_has_each_text_handed_on_as_it_comes():
    _, sink, _ = attempt(steady([*TEXTS[:9], FINISH, DONE], gap_s=GATHER_S))
    assert max(sink.waited) < 1e-6


def test_who_looks_on_sees_each_text_as_it_comes():
    _, sink, _ = attempt(steady([*TEXTS, FINISH, DONE]), sink=Seen(is_live=True))
    assert max(sink.waited) < 1e-6


def test_a_stream_that_is_stopped_on_purpose_stops_where_it_was_told():
    attempted, sink, ended_s = attempt(steady(TEXTS), stop_after=StopAfter(chunks=7, chars=None))
    assert (attempted.chunks, len(sink.deltas), ended_s) == (7, 7, pytest.approx(1.0 + 6 * 0.02))


def test_no_more_waits_than_a_few_kilobytes():
    blocks = [b"".join(TEXTS[:20])] * 200
    _, sink, _ = attempt(steady([*blocks, FINISH, DONE], gap_s=1e-4))
    sizes: dict[float, int] = {}
    for (at, _), delta in zip(sink.at, sink.deltas, strict=True):
        sizes[at] = sizes.get(at, 0) + len(sse(chat_chunk(delta.text)))
    assert max(sizes.values()) < GATHER_BYTES + 2 * len(blocks[0])


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_and_however_it_is_cut_it_ends_as_if_nothing_waited(seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    odd = [
        FINISH,
        DONE,
        b": ping\n\n",
        sse({"choices": []}),
        sse({"error": {"code": "server_error", "message": "m"}}),
        b"data: {\n\n",
        b"data: x\r\n\r\n",
        sse(chat_chunk("", index=1)) if seed % 2 else b"event: ping\ndata: {}\n\n",
    ]
    stream = [rng.choice(odd) if rng.random() < 0.02 else text for text in TEXTS * 2] + [FINISH, DONE] * rng.randint(
        0, 1
    )
    whole = b"".join(stream)
    places = sorted(rng.randrange(1, len(whole)) for _ in range(rng.randrange(60)))
    blocks = (
        [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True) if b > a]
        if rng.random() < 0.5
        else stream
    )
    at_s = 1.0
    script: list[Any] = []
    for block in blocks:
        at_s += rng.choice([0.0, 0.001, 0.02, 0.02, 0.06, 0.3])
        script.append((at_s, block))
    script.append((at_s + 0.01, rng.choice([None, httpx2.ReadError("reset")])))
    found = []
    for gathers in (True, False):
        attempted, sink, _ = attempt(
            script, gathers=gathers, deadlines=Deadlines(idle_s=0.29) if seed % 3 == 0 else None
        )
        counts = attempted.chunks, attempted.ttft_s, attempted.gaps.to_dict()["buckets"], attempted.last_content_ns
        found.append((attempted.outcome, counts, sink.deltas, [came for _, came in sink.at]))
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(20))
def test_a_block_of_several_events_says_what_they_say_one_by_one(seed):
    """As a client that is late reads them; the same events, at the same times, in blocks and alone."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    odd = [b": ping\n\n", b"\n\n", b"data: x\r\n\r\n", sse({"choices": []}), sse(chat_chunk("", index=1)), FINISH]
    sink = {"is_live": seed % 4 == 1}
    job = {"stop_after": StopAfter(chunks=rng.randrange(1, 90), chars=None)} if seed % 4 == 2 else {}
    together: list[Any] = []
    for number in range(60):
        events = [rng.choice(odd) if rng.random() < 0.03 else text for text in rng.sample(TEXTS, rng.choice([1, 1, 3]))]
        together.append((1 + number * 0.02, events))
    together.append((2.2, [FINISH, DONE]))
    alone = [(at_s, event) for at_s, events in together for event in events]
    found = []
    for script in ([(at_s, b"".join(events)) for at_s, events in together], alone):
        attempted, seen, _ = attempt([*script, (2.3, None)], sink=Seen(**sink), **job)
        found.append((attempted.outcome, attempted.chunks, seen.deltas, [round(came, 6) for _, came in seen.at]))
    assert found[0] == found[1]


@pytest.mark.parametrize("filler", [b"\n", b": ping\n\n"])
def test_a_block_of_blank_lines_or_keep_alives_is_not_taken_apart(filler, monkeypatch):
    """One by one 64 KiB of blank lines took a tenth of a second, in which no other stream got its turn."""
    fed = []
    feed = Decoder.feed

    def noted(self, data):
        fed.append(data)
        return feed(self, data)

    monkeypatch.setattr(Decoder, "feed", noted)
    block = filler * 1_000 + b"\n\n"
    attempted, _, _ = attempt([*steady([*TEXTS[:9], block, *TEXTS[9:20], FINISH, DONE]), (2, None)])
    assert isinstance(attempted.outcome, Completed)
    assert block in fed


@pytest.mark.parametrize(("per_s", "waits_s"), [(5_000, GATHER_S), (2, 0.5), (0.1, MAX_GATHER_S)])
def test_the_more_streams_there_are_the_longer_they_gather_up_to_a_bound(monkeypatch, per_s, waits_s):
    """Here it is the number of times a second that is made small, in the place of many streams."""
    monkeypatch.setattr("runner.native.body.GATHERED_PER_S", per_s)
    monkeypatch.setattr("runner.native.body._SHARES", itertools.repeat(1.0))
    attempted, sink, _ = attempt([*steady([*TEXTS * 3, FINISH, DONE]), (9, None)])
    assert isinstance(attempted.outcome, Completed)
    assert max(sink.waited) == pytest.approx(waits_s, abs=1e-6)
    assert Body._poured == 0, "one that has ended still counts"


def test_a_stream_that_is_cut_off_while_it_gathers_does_not_count_any_more():
    attempt([*steady(TEXTS), (1 + 60 * 0.02, httpx2.ReadError("reset"))])
    attempt(steady(TEXTS), deadlines=Deadlines(total_s=1.9))
    assert Body._poured == 0
