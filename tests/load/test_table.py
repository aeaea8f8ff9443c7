from __future__ import annotations

import io

import pytest
from rich.console import Console

from runner.load import assemble, table
from runner.load.figures import duration, duration_tick, ms, plain, share, share_tick
from runner.load.repeats import rows_of
from runner.load.results import Client
from tests.load import examples
from tests.load.test_results import ALL


def shown(result, width=100):
    out = io.StringIO()
    Console(width=width, file=out, highlight=False).print(table.render(result, width))
    return out.getvalue()


def row(text, label):
    return [line for line in text.splitlines() if line.strip().startswith(label)]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("name", ["healthy", "open_loop", "stalled", "interrupted", "repeated"])
def test_no_figure_is_cut_from_80_columns_on(name, width):
    text = shown(ALL[name](), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_level_has_its_row_in_both_tables(make):
    result = make()
    text = shown(result, 160)
    for level in result.levels:
        label = level.label[:12]
        if label.isascii() and "<" not in label:
            assert len([line for line in text.splitlines() if line.strip().startswith(label)]) >= 2


def test_latency_from_schedule_stands_below_latency_from_sending_in_an_open_loop():
    result = examples.open_loop()
    lines = shown(result).splitlines()
    late = [line for line in lines if "from schedule" in line]
    assert len(late) == len(result.levels)
    assert ms(result.levels[3].metric("ttft_from_schedule").p99) in late[3]
    assert "from schedule" not in shown(examples.healthy())


def limited(result):
    """The same under --rpm."""
    level = result.levels[0]
    waits = level.metric("ttft").model_copy(update={"p50": 1.234, "max": 3.0})
    changed = level.model_copy(update={"metrics": {**level.metrics, "limiter_wait": waits}})
    return result.model_copy(update={"levels": (changed, *result.levels[1:])})


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", [examples.healthy, examples.open_loop])
def test_the_wait_for_the_users_limits_is_a_column_of_its_own_where_there_was_any(make, width):
    text = shown(limited(make()), width)
    assert "limits" in text
    assert "1,234" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "limits" not in shown(make())


@pytest.mark.parametrize(("value", "kind", "columns"), [(2, "open", 6), (8, "open", 7), (16, "closed", 7)])
def test_all_figures_of_repeats_fit_80_columns(value, kind, columns):
    measured = [examples.level(value, kind=kind, repeat=i, seed=i) for i in range(3)]
    levels = examples.result(measured).levels
    whole = assemble.result_of({}, levels, calibration=None, plan=None, ended=None, complete=True)
    assert set(whole.summary_levels[0].rates) >= {"succeeded_per_s", "output_tokens_per_s", "goodput"}
    text = shown(whole, 80)
    about = text[text.index("Over n repeats") :].partition("Sent late")[0]
    assert "…" not in about
    assert about.count("±") == 1 + columns
    assert any(line.strip().startswith(levels[0].label) for line in about.splitlines())


def test_how_late_an_open_loop_sent_is_shown_by_default():
    result = examples.open_loop()
    text = " ".join(shown(result, 80).split())
    lag = result.levels[2].metric("send_lag")
    assert "Sent late by p50 / p99 / at most, in ms: 2/s " in text
    assert f"8/s {ms(lag.p50)} / {ms(lag.p99)} / {ms(lag.max)}" in text
    assert "Sent late" not in shown(examples.healthy())


def test_repeats_are_shown_with_their_intervals():
    text = shown(examples.repeated(), 80)
    assert "Over n repeats" in text
    about = text[text.index("Over n repeats") :].splitlines()
    means = next(line for line in about if line.strip().startswith("16 concurrent"))
    assert means.split()[2:] == ["4", "710", "120"]
    assert about[about.index(means) + 1].split() == ["±", "12", "±", "10"]
    assert "Over n repeats" not in shown(examples.healthy())


def test_repeats_of_which_one_is_client_bound_say_so():
    made = examples.repeated()
    bound = made.levels[5].model_copy(update={"client": Client(verdict="client-bound")})
    made = made.model_copy(update={"levels": (*made.levels[:5], bound, *made.levels[6:])})
    assert [label for label, *_ in rows_of(made)] == ["4 concurrent", "16 concurrent (client-bound)"]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"backed_off": 7, "backed_off_s": 2.5}, "so that more was never offered: 1 concurrent 7 times, 2.50 s"),
        ({"unjudged": 5}, "counted as not having kept it: 1 concurrent 5"),
        ({"without_usage": 3}, "unknown): 1 concurrent 3"),
        ({"requests": {"waiting_at_end": 4}}, "when the test was stopped: 1 concurrent 4"),
    ],
)
def test_what_makes_figures_less_than_they_seem_is_told(changes, note):
    whole = examples.healthy()
    level = whole.levels[0]
    requests = level.requests.model_copy(update=changes.pop("requests", {}))
    changed = level.model_copy(update={**changes, "requests": requests})
    assert note in " ".join(shown(whole.model_copy(update={"levels": (changed,)}), 160).split())
    assert note not in shown(whole, 160)


def test_requests_that_were_given_up_are_told_and_not_left_to_a_subtraction():
    whole = examples.open_loop()
    requests = whole.levels[0].requests.model_copy(update={"in_flight_at_end": 7})
    for complete, cut in ((True, ""), (False, " (cut)")):
        levels = (whole.levels[0].model_copy(update={"requests": requests, "complete": complete}), *whole.levels[1:])
        text = " ".join(shown(whole.model_copy(update={"levels": levels}), 160).split())
        assert f"counted as having kept no objective: 2/s{cut} 7; 5/s 2;" in text


def test_a_level_that_ended_within_its_warm_up_is_explained():
    level = examples.healthy().levels[0]
    short = level.model_copy(update={"requests": level.requests.model_copy(update={"in_window": 0, "offered": 5})})
    result = examples.healthy().model_copy(update={"levels": (short,)})
    about = "Requests of which none counts, since none was due between --warmup and --cooldown"
    assert f"{about}: 1 concurrent 5" in table.notes(result)
    assert not any(note.startswith(about) for note in table.notes(examples.healthy()))


def test_notes_on_fifty_levels_leave_the_tables_in_sight():
    level = examples.open_loop().levels[-1].model_copy(update={"errors": {"server_error": 3}})
    told = list(table.notes(examples.open_loop().model_copy(update={"levels": (level,) * 50})))
    (failed,) = (note for note in told if note.startswith("Failed, each with its message in results.jsonl: "))
    assert failed.count("20/s server_error 3; ") == table.MAX_TOLD - 1
    assert failed.endswith(f"; and {50 - table.MAX_TOLD + 1} more levels")


def test_a_wide_terminal_shows_what_other_clients_print_too():
    result = examples.open_loop()
    narrow, wide = shown(result, table.WIDE - 1), shown(result, table.WIDE)
    assert narrow.count("mean") == 0
    assert wide.count("mean") == 4
    assert ms(result.levels[0].metric("ttft").mean) in row(wide, "2/s")[1].split()
    assert plain(result.levels[0].metric("output_tokens_per_s_per_user").p50) in row(wide, "2/s")[0].split()


def test_a_percentile_that_n_cannot_support_is_a_dash_with_a_footnote():
    text = shown(examples.healthy())
    assert "–" in row(text, "1 concurrent")[1]
    assert "can't support" in text
    assert "–" not in row(text, "64 concurrent")[1]


def test_a_client_bound_level_is_marked_and_its_reasons_are_told():
    text = shown(examples.open_loop())
    assert row(text, "20/s")[0].rstrip().endswith("client-bound")
    assert "loop lag p99 41 ms" in text
    assert "not the server" in text
    assert "client-bound" not in shown(examples.healthy())


def test_errors_are_told_by_kind_and_429s_apart():
    result = examples.stalled()
    text = shown(result)
    assert "read_timeout" in text
    assert f"{result.levels[1].throttled}" in row(text, "9/s")[0].split()


def test_an_interrupted_test_says_so_at_the_level_and_below():
    text = shown(examples.interrupted())
    assert "16 concurrent (cut)" in text
    assert "Interrupted" in text


def test_no_name_can_move_the_cursor_or_style_the_table():
    text = shown(examples.hostile(), 80)
    assert not set(text) & {"\x1b", "\x00", "\x07", "\u202e"}
    assert "\\x1b[2J" in text
    assert "\\x1b]0;x" in shown(examples.result([examples.level(4, label="\x1b]0;x\x07")]))
    assert "[bold]x" in shown(examples.result([examples.level(4, label="[bold]x")]))


def test_nothing_measured_is_a_table_of_dashes():
    assert shown(examples.empty()).count("–") >= 10


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.01234, "0.0123"),
        (1.239, "1.24"),
        (9.996, "10.00"),
        (12.34, "12.3"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (float("inf"), "∞"),
        (-0.5, "-0.500"),
        (1e-12, "0.000000000"),
    ],
)
def test_a_figure_has_three_significant_digits(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (float("inf"), "∞"),
        (0.00031, "310 µs"),
        (0.0412, "41.2 ms"),
        (1.24, "1.24 s"),
        (720, "12 min"),
        (0, "0 ms"),
        (None, "–"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (0.25, "250 ms"), (2.5, "2.5 s"), (1, "1 s"), (0.0005, "500 µs"), (0.02, "20 ms")]
)
def test_a_tick_has_no_more_digits_than_it_needs(seconds, text):
    assert duration_tick(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1, "100 %"), (0.9999, ">99.9 %"), (0, "0 %"), (0.0001, "<0.1 %"), (0.5, "50.0 %"), (None, "–")]
)
def test_all_and_none_are_only_said_of_all_and_none(value, text):
    assert share(value) == text


def test_a_share_on_an_axis_is_round():
    assert [share_tick(v) for v in (0, 0.25, 1.0)] == ["0 %", "25 %", "100 %"]
