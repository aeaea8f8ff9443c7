"""What is sent when: closed loops, open ones, conversations; and what becomes of all of it at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anyio
import pytest

from runner.load.arrivals import Replay
from runner.load.conversations import Recorded
from runner.load.draws import Constant
from runner.load.engine import Answer
from runner.load.samples import RequestSample
from runner.load.sender import MAX_LANE_GAP_S, MAX_PAUSE_S, MIN_LANE_GAP_S, Part, Sender, Workload
from runner.load.sharegpt import Dialogue
from runner.load.spec import LevelSpec
from runner.testing.virtual_time import run_virtual
from tests.load.fakes import Server, supply

PROMPTS = Workload(supply())


def level(kind="closed", value=2.0, **changes):
    defaults: dict[str, Any] = {"arrivals": "constant", "max_in_flight": 100}
    return LevelSpec(kind, value, "x", **(defaults | changes))


def sent(server, spec, workload=PROMPTS, part=Part(), during=None):  # noqa: B008 - immutable
    """Runs a level in virtual time."""

    async def run():
        sender = Sender(server, workload, spec, None, server.clock(), part)
        async with anyio.create_task_group() as tasks:
            if during is not None:
                tasks.start_soon(during, sender)
            await sender.run()
            server.clock_at_end = sender.now_s
            tasks.cancel_scope.cancel()
        return sender

    return run_virtual(run)


def counts(sender):
    names = ("offered", "succeeded", "failed", "dropped", "in_flight")
    return {name: sender.statistics.counts[name] for name in names if sender.statistics.counts[name]}


def test_a_closed_loop_keeps_its_number_in_flight_and_sends_when_an_answer_is_in():
    server = Server()
    sender = sent(server, level(value=3, requests=9))
    assert server.most == 3
    assert [name for _, name in server.sent] == [f"synthetic#{k}" for k in range(9)]
    assert [round(when) for when, _ in server.sent] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert counts(sender) == {"offered": 9, "succeeded": 9}
    assert sender.complete


@pytest.mark.parametrize(("warmup_s", "gap_s"), [(0.0, MIN_LANE_GAP_S), (0.25, 0.05), (60.0, MAX_LANE_GAP_S)])
def test_the_lanes_of_a_closed_loop_begin_one_after_another_over_the_warm_up(warmup_s, gap_s):
    server = Server()
    sent(server, level(value=5, requests=5, warmup_s=warmup_s))
    assert [when for when, _ in server.sent] == pytest.approx([gap_s * k for k in range(5)], abs=1e-3)


def test_a_closed_loop_ends_with_its_time_and_waits_for_what_is_on_its_way():
    server = Server(lambda number: 2.0)
    sender = sent(server, level(value=1, duration_s=3.0))
    assert len(server.sent) == 2
    assert counts(sender) == {"offered": 2, "succeeded": 2}


def test_an_open_loop_sends_at_its_times_however_slow_the_server_is():
    server = Server(lambda number: 60.0)
    sender = sent(server, level("open", 10.0, duration_s=2.0))
    assert [when for when, _ in server.sent] == pytest.approx([k / 10 for k in range(20)], abs=2e-3)
    assert server.scheduled == pytest.approx([k / 10 for k in range(20)])
    assert counts(sender) == {"offered": 20, "succeeded": 20}


def test_what_is_due_while_too_many_are_in_flight_is_dropped_and_counted_and_not_held_back():
    server = Server(lambda number: 60.0)
    sender = sent(server, level("open", 10.0, duration_s=2.0, max_in_flight=4))
    assert len(server.sent) == 4
    assert counts(sender) == {"offered": 20, "succeeded": 4, "dropped": 16}


def early(takes, lead_s=0.25):
    """A server that wants its requests so long before their moment."""
    server = Server(takes)
    server.lead_s = lead_s
    return server


def test_what_is_ready_before_its_moment_takes_no_room_of_what_is_in_flight():
    server = early(lambda number: 0.15)
    sender = sent(server, level("open", 10.0, duration_s=2.0, max_in_flight=2))
    assert [when for when, _ in server.sent] == pytest.approx([k / 10 for k in range(20)], abs=2e-3)
    assert counts(sender) == {"offered": 20, "succeeded": 20}
    assert server.most == 2


def test_requests_that_are_made_early_are_dropped_by_what_is_in_flight_at_their_moment():
    server = early(lambda number: 60.0)
    sender = sent(server, level("open", 10.0, duration_s=2.0, max_in_flight=4))
    assert len(server.sent) == 4
    assert counts(sender) == {"offered": 20, "succeeded": 4, "dropped": 16}


@pytest.mark.parametrize("what", ["stop", "cut"])
def test_a_request_whose_moment_comes_after_the_end_was_never_offered(what):
    server = early(lambda number: 100.0, lead_s=0.4)

    async def during(sender):
        await anyio.sleep(1.25)  # the one of 1.5 s is ready
        server.stop()
        getattr(sender, what)()

    sender = sent(server, level("open", 2.0, duration_s=60.0), during=during)
    assert [when for when, _ in server.sent] == pytest.approx([0.0, 0.5, 1.0], abs=2e-3)
    assert counts(sender) == {"offered": 3, "succeeded" if what == "stop" else "in_flight": 3}
    assert not sender.complete


def test_the_next_turn_of_an_open_loop_is_made_early_and_sent_when_the_user_has_thought():
    server = early(lambda number: 1.0)
    sent(server, level("open", 1.0, requests=1), talks(2, think=2.0))
    assert [when for when, _ in server.sent] == pytest.approx([0.0, 3.0], abs=2e-3)
    assert server.scheduled == pytest.approx([0.0, 3.0], abs=2e-3)


def test_no_turn_follows_where_the_test_ends_while_it_waits_for_its_moment():
    server = early(lambda number: 1.0, lead_s=0.4)

    async def during(sender):
        await anyio.sleep(2.8)  # due at 3.0
        server.stop()

    sender = sent(server, level("open", 1.0, requests=1), talks(3, think=2.0), during=during)
    assert [name for _, name in server.sent] == ["d#0.0"]
    assert counts(sender) == {"offered": 1, "succeeded": 1}


def test_the_latency_from_schedule_of_an_open_loop_holds_what_a_stalled_server_kept_waiting():
    stall = Server(lambda number: 3.0 if number == 0 else 0.1)
    sender = sent(stall, level("open", 10.0, requests=10))
    assert sender.statistics.metrics["e2e_from_schedule"].sketch.max == pytest.approx(3.0, rel=0.01)


def test_numbers_of_requests_go_on_over_the_levels_of_a_test():
    server = Server()
    sent(server, level(value=1, requests=2, first=40))
    assert [name for _, name in server.sent] == ["synthetic#40", "synthetic#41"]


@pytest.mark.parametrize(("kind", "value"), [("closed", 3.0), ("open", 5.0)])
def test_processes_share_a_level_without_sending_anything_twice_or_not_at_all(kind, value):
    names = []
    for index in range(3):
        server = Server(lambda number: 0.1)
        sent(server, level(kind, value, requests=10), part=Part(index, 3))
        names += [name for _, name in server.sent]
    assert sorted(names, key=lambda name: int(name[10:])) == [f"synthetic#{k}" for k in range(10)]


def test_where_there_are_fewer_lanes_than_processes_everything_is_sent_all_the_same():
    servers = [Server(), Server(), Server()]
    for index, server in enumerate(servers):
        assert sent(server, level(value=2, requests=7), part=Part(index, 3)).complete
    names = [name for server in servers for _, name in server.sent]
    assert sorted(names) == [f"synthetic#{k}" for k in range(7)]
    assert not servers[2].sent


def test_numbers_that_are_used_up_are_told_even_where_some_between_them_were_not():
    fast = Server(lambda number: 0.5)
    sender = sent(fast, level(value=2, duration_s=4.9), part=Part(1, 2))
    assert fast.sent[-1][1] == f"synthetic#{sender.numbers - 1}"
    assert sender.statistics.counts["offered"] == sender.numbers / 2


def after_1250_ms(what):
    async def during(sender):
        await anyio.sleep(1.25)
        getattr(sender, what)()

    return during


def test_after_stop_nothing_is_sent_and_what_is_on_its_way_is_waited_for():
    server = Server(lambda number: 1.0)

    sender = sent(server, level("open", 2.0, duration_s=60.0), during=after_1250_ms("stop"))
    assert counts(sender) == {"offered": 3, "succeeded": 3}
    assert not sender.complete


def test_after_cut_what_is_on_its_way_counts_as_in_flight():
    server = Server(lambda number: 100.0)

    sender = sent(server, level("open", 2.0, duration_s=60.0), during=after_1250_ms("cut"))
    assert counts(sender) == {"offered": 3, "in_flight": 3}
    assert not sender.complete


def test_after_stop_the_grace_period_bounds_the_waiting():
    server = Server(lambda number: 1e6)
    server.grace_s = 5.0

    sender = sent(server, level("open", 2.0, duration_s=60.0), during=after_1250_ms("stop"))
    assert counts(sender) == {"offered": 3, "in_flight": 3}
    assert not sender.complete


@pytest.mark.parametrize("ends", [{"duration_s": 3.0}, {"requests": 6}, {"duration_s": 60.0, "requests": 6}])
@pytest.mark.parametrize(("kind", "value"), [("closed", 6.0), ("open", 2.0)])
def test_a_server_that_never_answers_ends_a_level_when_the_last_request_has_been_waited_for(kind, value, ends):
    async def still_there(sender):
        await anyio.sleep(90)
        raise AssertionError("it still waits")

    server = Server(lambda number: 1e6)
    sender = sent(server, level(kind, value, drain_s=20.0, **ends), during=still_there)
    assert counts(sender) == {"offered": 6, "in_flight": 6}
    assert sender.complete


def test_an_answer_within_the_drain_counts_and_a_later_one_is_in_flight():
    server = Server(lambda number: (19.0, 30.0, 19.0)[number])
    sender = sent(server, level("open", 1.0, requests=3, drain_s=20.0))
    assert counts(sender) == {"offered": 3, "succeeded": 2, "in_flight": 1}


def test_waiting_for_limits_and_thinking_are_no_waiting_for_answers():
    server = Server()
    sender = sent(server, level("open", 1.0, requests=1, drain_s=20.0), talks(3, think=30.0))
    assert counts(sender) == {"offered": 3, "succeeded": 3}
    limited = Server(lambda number: 100.0)
    limited.waiting = 1

    async def admitted(sender):
        await anyio.sleep(95)
        limited.waiting = 0

    assert counts(sent(limited, level("open", 1.0, requests=1, drain_s=20.0), during=admitted)) == {
        "offered": 1,
        "succeeded": 1,
    }


def test_what_stops_the_test_stops_the_level():
    server = Server(lambda number: 1.0)

    async def stop(sender):
        await anyio.sleep(2.5)
        server.stop()

    sender = sent(server, level(value=1, duration_s=60.0), during=stop)
    assert counts(sender) == {"offered": 3, "succeeded": 3}
    assert not sender.complete


class TurnsAway(Server):
    """Closes its door with the first request, and turns the others away without a moment's wait."""

    async def send(self, request, level, zero_s):
        self.sent.append((self.clock() - zero_s, request.job.id))
        assert len(self.sent) < 100, "a lane asks again and again"
        self.stop()
        return Answer(RequestSample(request.scheduled, waiting=True))


def test_a_lane_whose_requests_are_turned_away_ends():
    server = TurnsAway()
    sender = sent(server, level(value=1, duration_s=60.0))
    assert len(server.sent) == 1
    assert not sender.complete


def test_a_failure_does_not_end_a_lane():
    sender = sent(Server(fails={0, 1}), level(value=1, requests=4))
    assert counts(sender) == {"offered": 4, "succeeded": 2, "failed": 2}


class Always:
    """Every number."""

    def __contains__(self, number):
        return True


def gaps(server):
    times = [when for when, _ in server.sent]
    return [after - before for before, after in pairwise(times)]


def test_a_lane_whose_requests_fail_at_once_backs_off_and_the_wait_is_counted():
    server = Server(lambda number: 0.0, fails=Always())
    sender = sent(server, level(value=1, duration_s=60.0))
    assert gaps(server)[:8] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0], abs=2e-3)
    assert max(gaps(server)) == pytest.approx(MAX_PAUSE_S, abs=2e-3)
    assert len(server.sent) < 70
    assert sender.statistics.counts["backed_off"] == len(server.sent) - 1
    assert sender.statistics.backed_off_s == pytest.approx(sum(gaps(server)), abs=0.1)


def test_an_answer_ends_the_backing_off():
    server = Server(lambda number: 0.0, fails={0, 1, 2, 4})
    sent(server, level(value=1, requests=6))
    assert gaps(server) == pytest.approx([0.01, 0.02, 0.04, 0.0, 0.01], abs=2e-3)


def test_a_failure_that_took_its_time_a_429_and_an_open_loop_are_not_waited_for():
    slow = Server(lambda number: 2.0, fails=Always())
    sent(slow, level(value=1, requests=8))
    assert gaps(slow) == pytest.approx([2.0] * 7, abs=0.02)
    throttled = Server(lambda number: 0.001, fails=Always(), fault="rate_limited")
    assert sent(throttled, level(value=1, requests=50)).statistics.counts["backed_off"] == 0
    opened = Server(lambda number: 0.0, fails=Always())
    assert sent(opened, level("open", 100.0, requests=50)).statistics.counts["backed_off"] == 0
    assert max(gaps(opened)) < 0.02


def test_backing_off_ends_with_the_level_and_with_a_stop():
    server = Server(lambda number: 0.0, fails=Always())
    sender = sent(server, level(value=1, duration_s=2.5))
    assert server.clock_at_end <= 2.5
    assert sender.complete
    stopped = Server(lambda number: 0.0, fails=Always())
    sent(stopped, level(value=1, duration_s=60.0), during=after_1250_ms("stop"))
    assert stopped.clock_at_end <= 1.3


def test_a_record_says_of_which_start_of_the_test_it_is():
    server = Server()
    sent(server, level(value=1, requests=1, repeat=2, run=3))
    assert server.levels == [{"level": "x", "repeat": 2, "run": 3}]


def test_a_trace_ends_the_level_and_may_send_many_at_once():
    server = Server()
    workload = Workload(supply(), trace=Replay([0.0] * 40 + [1.5]))
    sender = sent(server, level("open", 1.0, arrivals="trace"), workload)
    assert [round(when, 1) for when, _ in server.sent] == [0.0] * 40 + [1.5]
    assert counts(sender) == {"offered": 41, "succeeded": 41}


def talks(turns, think=0.0):
    dialogue = Dialogue("d", None, tuple(f"question {n}" for n in range(turns)), (5,) * turns)
    return Workload(None, Recorded([dialogue], "d", Constant(think)))


def test_a_conversation_sends_its_next_turn_when_the_answer_is_in_and_the_user_has_thought():
    server = Server()
    sender = sent(server, level(value=1, requests=2), talks(3, think=4.0))
    assert [name for _, name in server.sent] == ["d#0.0", "d#0.1", "d#0.2", "d#1.0", "d#1.1", "d#1.2"]
    assert [when for when, _ in server.sent] == pytest.approx([0, 5, 10, 11, 16, 21], abs=0.05)
    assert counts(sender) == {"offered": 6, "succeeded": 6}


def test_later_turns_of_an_open_loop_are_due_when_the_user_has_thought():
    server = Server()
    sent(server, level("open", 1.0, requests=1), talks(2, think=2.0))
    assert server.scheduled == pytest.approx([0.0, 3.0], abs=0.05)


def test_a_conversation_whose_answer_failed_is_over():
    server = Server(fails={0})
    sent(server, level(value=1, requests=1), talks(3))
    assert [name for _, name in server.sent] == ["d#0.0"]


def test_a_conversation_ends_with_the_level_even_while_its_user_thinks():
    server = Server()
    sender = sent(server, level(value=1, duration_s=3.0), talks(5, think=1e6))
    assert len(server.sent) == 1
    assert sender.complete


def test_a_stop_ends_the_thinking():
    server = Server()

    async def stop(sender):
        await anyio.sleep(10)
        sender.stop()

    sender = sent(server, level(value=1), talks(5, think=1e6), during=stop)
    assert len(server.sent) == 1
    assert not sender.complete
