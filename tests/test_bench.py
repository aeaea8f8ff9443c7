"""scripts/bench: its arithmetic, its load server byte by byte, and one cell of two seconds as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from runner import sse
from tests.process import ROOT, environment

SCRIPTS = ROOT / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import _bench  # type: ignore[import-not-found]

    return _bench


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import _bench_server  # type: ignore[import-not-found]

    return _bench_server


def used(bench: Any, cpu_s: float, peak_mib: float = 50.0, **of_server: float) -> Any:
    return bench.Used(cpu_s, 2.0, peak_mib, of_server)


def row(bench: Any, client: str = "runner", *, cpu_s: float = 1.0, streams: int = 10, **more: Any) -> Any:
    load = bench.Load(jobs=100, streams=streams, chunks=20, gap_ms=more.pop("gap_ms", 20))
    return bench.Row(more.pop("cell", "paced"), client, load, used(bench, cpu_s, **more))


def test_a_cost_is_what_the_process_used_less_its_start_over_what_it_did(bench):
    spent = used(bench, 3.0).less(used(bench, 1.0))
    found = bench.Row("paced", "runner", bench.Load(jobs=100, streams=10, chunks=20), spent)
    assert found.us_per_request == pytest.approx(20_000)
    assert found.us_per_chunk == pytest.approx(1_000)


def test_a_start_that_cost_more_than_the_run_leaves_nothing_and_not_less(bench):
    left = used(bench, 1.0).less(used(bench, 1.5))
    assert (left.cpu_s, left.wall_s) == (0.0, 0.0)
    assert bench.Row("paced", "runner", bench.Load(jobs=100, streams=10, chunks=20), left).chunks_per_s is None


def test_one_run_that_was_disturbed_does_not_move_the_median(bench):
    assert bench.median([used(bench, cpu_s) for cpu_s in (1.0, 9.0, 1.2)]).cpu_s == 1.2


def test_memory_a_stream_is_the_growth_since_the_row_with_the_fewest_streams(bench):
    least, most = row(bench, streams=10, peak_mib=50.0), row(bench, streams=1_034, peak_mib=90.0)
    assert most.kib_per_stream(least) == pytest.approx(40.0)
    assert least.kib_per_stream(least) is None


@pytest.mark.parametrize(
    ("behind_ms", "held", "keeps_up"), [(20, 10, True), (5_000, 10, False), (20, 4, False)], ids=str
)
def test_a_client_keeps_up_when_it_holds_its_streams_and_reads_them_in_time(bench, behind_ms, held, keeps_up):
    assert row(bench, behind_p99_ms=behind_ms, most_open=held).keeps_up is keeps_up


def test_the_ratios_say_in_words_which_side_is_cheaper(bench):
    rows = [row(bench), row(bench, "bare", cpu_s=0.5), row(bench, "sdk", cpu_s=12.0)]
    assert bench.verdicts(rows) == ["- paced: 2.0 × the CPU of bare", "- paced: 12.0 × less CPU than sdk"]


def test_what_could_not_be_sustained_does_not_count_as_sustained(bench):
    fast = row(bench, cell="sustained", streams=100, behind_p99_ms=9_000, most_open=100)
    slow = row(bench, cell="sustained", streams=10, behind_p99_ms=5, most_open=10)
    assert bench.verdicts([fast, slow]) == ["- sustained by runner: 500 chunks/s, the most of those tried"]


def test_a_line_of_the_table_has_a_cell_for_each_head(bench):
    head, rule = bench.HEAD.splitlines()
    line = bench.table_line(row(bench), row(bench))
    assert head.count("|") == rule.count("|") == line.count("|")


def test_the_quantile_of_counts_is_the_value_at_its_rank(server):
    counts = Counter({0: 98, 7: 1, 50: 1})
    assert [server.quantile(counts, q) for q in (0.5, 0.99, 1.0)] == [0, 7, 50]
    assert server.quantile(Counter(), 0.99) == 0


def body_of(wire: bytes) -> bytes:
    """A chunked body without its framing."""
    data, body = wire.partition(b"\r\n\r\n")[2], b""
    while size := int(data[: data.index(b"\r\n")], 16):
        start = data.index(b"\r\n") + 2
        body += data[start : start + size]
        assert data[start + size : start + size + 2] == b"\r\n"
        data = data[start + size + 2 :]
    assert data == b"0\r\n\r\n"
    return body


@pytest.mark.parametrize("chunks", [1, 2, 100])
@pytest.mark.parametrize("plain", [False, True])
def test_the_load_server_writes_an_answer_of_so_many_content_chunks_and_a_whole_end(server, chunks, plain):
    wire = b"".join(server.Answer.of(chunks, plain=plain).blocks)
    body = wire.partition(b"\r\n\r\n")[2] if plain else body_of(wire)
    assert not plain or b"content-length: %d\r\n" % len(body) in wire
    *events, done = [data for _, data in sse.Decoder().feed(body)]
    *contents, finish, usage = map(orjson.loads, events)
    assert done == b"[DONE]"
    assert len([chunk for chunk in contents if chunk["choices"][0]["delta"]["content"]]) == chunks
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == chunks


def test_a_paced_answer_is_one_write_a_content_chunk_behind_its_head(server):
    assert len(server.Answer.of(50).blocks) == 51
    assert len(server.Answer.of(1).blocks) == 1


def test_a_flat_out_answer_is_the_same_bytes_in_fewer_writes(server):
    answer = server.Answer.of(100)
    assert b"".join(answer.grouped()) == b"".join(answer.blocks)
    assert len(answer.grouped()) < len(answer.blocks) / 10


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="wait4 tells what a child used")
def test_one_cell_runs_its_clients_to_their_end_and_writes_its_figures(tmp_path: Path):
    code = (
        "import sys, _bench\n"
        "_bench.ROOT = __import__('pathlib').Path(sys.argv.pop(1))\n"
        "_bench.CELLS = (_bench.Cell('paced', 'tiny', (_bench.Load(8, 4, 5, 10),), (), _bench.QUICK),)\n"
        "sys.exit(_bench.main())"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), "--cell", "paced", "--repeats", "1"]
    env = environment(PYTHONPATH=f"{SCRIPTS}{os.pathsep}{ROOT}")
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (path,) = (tmp_path / "results" / "bench").glob("*.json")
    rows = orjson.loads(path.read_bytes())["rows"]
    assert [row["client"] for row in rows] == ["runner", "bare"]
    assert all(row["used"]["server"]["requests"] == 8 for row in rows)
    assert all(row["used"]["server"]["chunks"] == 8 * 6 for row in rows)
