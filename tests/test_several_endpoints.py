"""A run over several endpoints as a user makes it: real processes, real servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
from anyio.from_thread import start_blocking_portal

from runner.simulator import Profile, Simulator, simulator_process
from tests.process import by_id, environment, run, write_jobs

pytestmark = pytest.mark.slow
FAST = Profile(ttft_s=0.02, tokens_per_s=float("inf"), jitter=0.0)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Simulator]]:
    """Two that answer, one that is out of order, one that refuses every key."""
    profiles = {
        "good": FAST,
        "limited": replace(FAST, rpm=60),
        "dead": replace(FAST, fault_rates={"http_500": 1.0}),
        "closed": replace(FAST, fault_rates={"http_401": 1.0}),
    }
    with start_blocking_portal() as portal:
        managers = {
            name: portal.wrap_async_context_manager(simulator_process(profile)) for name, profile in profiles.items()
        }
        try:
            yield {name: manager.__enter__() for name, manager in managers.items()}
        finally:
            for manager in managers.values():
                manager.__exit__(None, None, None)


def configured(path, servers, *names, **more):
    tables = [
        f'[[endpoints]]\nname = "{name}"\nbase_url = "{servers[name].base_url}"\napi_key_env = "KEY"\n'
        + "".join(f"{key} = {value}\n" for key, value in more.get(name, {}).items())
        for name in names
    ]
    path.write_text("\n".join(tables))
    return path


def jobs(path, count, **more):
    return write_jobs(
        path, [{"custom_id": f"j{i}", "model": "m", "prompt": f"question {i}", **more} for i in range(count)]
    )


def test_jobs_are_shared_and_one_bad_key_or_dead_server_costs_no_job(servers, tmp_path):
    config = configured(tmp_path / "pool.toml", servers, "good", "limited", "dead", "closed", good={"rpm": 60_000})
    path = jobs(tmp_path / "jobs.jsonl", 300)
    env = environment(KEY="sk-pool-canary")
    ended = run(path, "--config", config, "--progress", "plain", "--concurrency", 16, cwd=tmp_path, env=env)
    assert ended.code == 0, ended.stderr
    assert "endpoint closed is out of use: not_authorized" in ended.stderr
    folder = tmp_path / "results" / "jobs"
    found = by_id(folder)
    assert len(found) == 300
    counts = Counter(record["runner"]["endpoint"] for record in found.values())
    assert counts["good"] > 200
    assert counts["limited"] >= 1
    assert set(counts) == {"good", "limited"}
    retried = Counter(retry["endpoint"] for record in found.values() for retry in record["runner"]["retries"])
    assert retried["closed"] >= 1
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["endpoints"] == {name: servers[name].base_url for name in ("good", "limited", "dead", "closed")}
    summary = orjson.loads((folder / "summary.json").read_bytes())["run"]
    states = {name: each["state"] for name, each in summary["limits"]["endpoints"].items()}
    assert states["closed"] == "disabled"
    assert states["good"] == "ok"
    assert not any(b"sk-pool-canary" in file.read_bytes() for file in folder.iterdir())


def test_when_no_endpoint_is_left_for_a_model_its_jobs_stay_and_the_others_are_done(servers, tmp_path):
    config = configured(
        tmp_path / "pool.toml", servers, "good", "closed", good={"models": '["m"]'}, closed={"models": '["m", "only"]'}
    )
    lines = [{"custom_id": f"m{i}", "model": "m", "prompt": f"q{i}"} for i in range(50)]
    lines[10:10] = [{"custom_id": f"only{i}", "model": "only", "prompt": f"o{i}"} for i in range(3)]
    path = write_jobs(tmp_path / "jobs.jsonl", lines)
    ended = run(path, "--config", config, "--progress", "plain", cwd=tmp_path, env=environment(KEY="k"))
    assert ended.code == 4, ended.stderr
    assert by_id(tmp_path / "results" / "jobs").keys() == {f"m{i}" for i in range(50)}
    assert "no endpoint is left for only" in ended.stderr


def test_a_model_no_endpoint_serves_is_that_jobs_failure(servers, tmp_path):
    config = configured(tmp_path / "pool.toml", servers, "good", good={"models": '{ m = "there" }'})
    path = write_jobs(
        tmp_path / "jobs.jsonl", [{"model": "m", "prompt": "a", "id": "a"}, {"model": "x", "prompt": "b", "id": "b"}]
    )
    ended = run(path, "--config", config, "--progress", "none", cwd=tmp_path, env=environment(KEY="k"))
    assert ended.code == 1
    found = by_id(tmp_path / "results" / "jobs")
    assert found["a"]["error"] is None
    assert found["b"]["error"]["code"] == "not_served"
    assert found["b"]["runner"]["attempts"] == 0


def test_an_endpoints_base_url_and_one_for_the_run_contradict_each_other(servers, tmp_path):
    config = configured(tmp_path / "pool.toml", servers, "good")
    path = jobs(tmp_path / "jobs.jsonl", 1)
    ended = run(path, "--config", config, "--base-url", "http://h/v1", cwd=tmp_path, env=environment(KEY="k"))
    assert ended.code == 2
    assert "contradict" in ended.stderr


def test_a_pool_can_be_rehearsed(servers, tmp_path):
    config = configured(tmp_path / "pool.toml", servers, "good", "dead")
    ended = run(jobs(tmp_path / "jobs.jsonl", 20), "--config", config, "--simulate", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    endpoints = {record["runner"]["endpoint"] for record in by_id(tmp_path / "results" / "jobs").values()}
    assert endpoints == {"good", "dead"}
