from __future__ import annotations

import io
from pathlib import Path

import click
import orjson
import pytest

from runner.check import check, report
from runner.cli import cli
from runner.errors import InputError
from runner.settings import ModelLimits, Price, Settings
from tests.process import run, write_jobs


async def checked(tmp_path, *lines, **settings):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines))
    made = Settings(**settings)
    found = await check([str(path)], made)
    out = io.StringIO()
    report(found, made, out)
    return found, out.getvalue()


async def test_every_line_is_counted_by_what_it_is(tmp_path):
    found, text = await checked(
        tmp_path,
        {"prompt": "a"},
        {"input": "b"},
        {"messages": [{"role": "user", "content": "x"}]},
        b"{broken",
        {"prompt": "c", "model": "m"},
    )
    assert found.rejected == 1
    assert found.jobs == 4
    assert found.without_model == 3
    assert not found.ok
    assert "jobs.jsonl:4" in text


async def test_cost_and_duration_follow_from_the_reservation(tmp_path):
    found, text = await checked(
        tmp_path,
        *({"prompt": "x" * 400, "max_tokens": 900, "custom_id": str(i)} for i in range(10)),
        rpm=5,
        tpm=100_000,
        model="m",
        prices={"m": Price(input=0, output=1_000_000)},
    )
    assert found.output_tokens == 9_000
    assert found.cost == 9_000
    assert "at least 2m00s" in text


async def test_a_job_that_can_never_fit_is_named(tmp_path):
    found, text = await checked(tmp_path, {"prompt": "x", "max_tokens": 5_000}, tpm=1_000)
    assert (found.never_fit, found.ok) == (1, False)
    assert "never fit" in text


async def test_a_flood_of_bad_lines_is_not_a_flood_of_output(tmp_path):
    _, text = await checked(tmp_path, *[b"{"] * 1_000)
    assert len(text.splitlines()) < 40
    assert "980 more" in text


async def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        await check([str(tmp_path / "nowhere.jsonl")], Settings())


async def test_limits_of_a_model_count_for_its_jobs(tmp_path):
    lines = [{"prompt": "x", "model": "small-1", "max_tokens": 10}] * 10 + [{"prompt": "y", "model": "big"}]
    limits = {"small": ModelLimits(rpm=2), "*": ModelLimits(tpm=100)}
    found, text = await checked(tmp_path, *lines, limits=limits)
    assert found.minutes(Settings(limits=limits)) == pytest.approx((1024 + 8) / 100, rel=0.01)
    assert found.never_fit == 0  # a guess is cut to what fits
    assert "at least 10m" in text
    assert found.loads["small",].minutes == 5


async def test_what_several_endpoints_allow_adds_up(tmp_path):
    endpoints = (
        {"name": "a", "rpm": 10, "limits": {"m": ModelLimits(rpm=30)}},
        {"name": "b", "models": ["m"], "limits": {"*": ModelLimits(rpm=10, tpm=1000)}},
    )
    lines = [{"prompt": "x", "model": "m", "max_tokens": 10}] * 40 + [{"prompt": "x", "model": "other"}]
    found, text = await checked(tmp_path, *lines, endpoints=endpoints)
    assert found.loads["a/m", "b/m"].minutes == 2
    assert found.not_served == 0
    found, text = await checked(tmp_path, *lines, endpoints=endpoints[1:])
    assert (found.not_served, found.ok) == (1, False)
    assert "not served    1" in text


@pytest.mark.slow
def test_every_option_that_check_offers_changes_what_it_says(tmp_path):
    jobs = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "a"}])
    values = {"model": "m", "rpm": 1, "tpm": 10, "reserve_output_tokens": 5, "config": "openai-tier-1"}
    offered = {option.name for option in cli.commands["check"].params if isinstance(option, click.Option)}
    assert offered == values.keys()
    plain = run("check", jobs, cwd=tmp_path)
    for name, value in values.items():
        assert run("check", jobs, f"--{name.replace('_', '-')}", value, cwd=tmp_path).stdout != plain.stdout, name


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_report_that_cannot_be_written_changes_no_verdict(tmp_path):
    jobs = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "a"}])
    with open("/dev/full", "wb") as full:
        ended = run("check", jobs, cwd=tmp_path, stdout=full)
    assert (ended.code, ended.stderr) == (0, "")
