"""The shipped configurations: each loads, names its sources, and sends no key where it doesn't belong."""

from __future__ import annotations

import io
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from runner.check import check, report
from runner.costs import price_of
from runner.errors import UsageError
from runner.jobs import Api, Job
from runner.settings import ModelLimits, Settings, limits_of, load
from runner.target import resolve
from runner.wire import encode_body

FOLDER = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
TIERS = [f"openai-tier-{n}" for n in range(1, 6)]
SERVERS = ["azure", "ollama", "openrouter", "vllm"]

ENTRY = re.compile(r'"(?P<model>[^"]+)" = \{.*\}  # \[(?P<source>[A-Z])\]')
SOURCE = re.compile(r"# \[(?P<letter>[A-Z])\] https://\S+, .*\b20\d\d\b")
EXAMPLE = re.compile(r"# (?=[a-z_]+ = |\[[a-z]+\.)")
LONGEST_WAIT_S = 3_600


@pytest.fixture(autouse=True)
def clean_env(monkeypatch):
    for key in Settings.model_fields:
        monkeypatch.delenv(f"RUNNER_{key.upper()}", raising=False)


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.toml").read_text("utf-8")


def loaded(name: str) -> Settings:
    return load(flags={}, config=name)


def lane_of(model: str, limits: dict[str, ModelLimits]) -> str:
    """The entry whose limits admission would hold a model to."""
    return limits_of(model, limits)[0]


def priced_as(model: str, settings: Settings) -> str:
    """The entry whose price an answer of a model would have."""
    price = price_of(model, settings.prices)
    return next(name for name, entry in settings.prices.items() if entry is price)


# ── Every file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_promised_configuration_is_there():
    assert set(NAMES) == {"default", "pool", "simulate", *TIERS, *SERVERS}


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_loads_by_its_name(name):
    assert isinstance(loaded(name), Settings)


@pytest.mark.parametrize("name", NAMES)
def test_every_commented_example_is_a_setting_that_loads(name, tmp_path):
    lines = [EXAMPLE.sub("", line) for line in text_of(name).splitlines()]
    file = tmp_path / "uncommented.toml"
    file.write_text("\n".join(lines), "utf-8")
    assert isinstance(load(flags={}, config=str(file)), Settings)


@pytest.mark.parametrize("name", NAMES)
async def test_check_works_with_every_configuration(name, tmp_path):
    jobs = tmp_path / "jobs.jsonl"
    models = ["gpt-4o-mini", "gpt-5.6-luna", "text-embedding-3-small"]
    jobs.write_bytes(b"\n".join(orjson.dumps({"prompt": "Hi.", "model": model}) for model in models))
    settings = loaded(name)
    found, out = await check([str(jobs)], settings), io.StringIO()
    report(found, settings, out)
    assert found.ok
    assert found.jobs == len(models)
    assert "jobs          3" in out.getvalue()
    assert found.unpriced == (0 if name in TIERS else len(models))


@pytest.mark.parametrize("name", NAMES)
async def test_the_example_jobs_can_be_rehearsed_with_every_configuration(name):
    assert (await check([str(FOLDER.parent / "jobs.jsonl")], loaded(name))).ok


@pytest.mark.parametrize("name", NAMES)
def test_no_configuration_holds_a_secret_or_a_path_of_some_machine(name):
    text = text_of(name)
    assert not re.search(r"\bsk-|Bearer |[A-Za-z0-9_-]{40,}", text.replace("https://", "\n").replace("/", "\n"))
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|mnt)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_every_line_fits_a_screen_and_every_file_a_few(name):
    lines = text_of(name).splitlines()
    assert max(map(len, lines)) <= 124
    assert len(lines) <= 100


# ── OpenAI's tiers ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TIERS)
def test_every_figure_of_a_tier_names_a_source_with_address_and_year(name):
    text, values = text_of(name), tomllib.loads(text_of(name))
    sources = {match["letter"] for match in map(SOURCE.match, text.splitlines()) if match}
    entries = [match for match in map(ENTRY.fullmatch, text.splitlines()) if match]
    assert len(entries) == len(values["limits"]) + len(values["prices"])
    assert {entry["source"] for entry in entries} == sources


@pytest.mark.parametrize("name", TIERS)
def test_a_tier_says_that_the_account_and_the_headers_outrank_it(name):
    head = text_of(name).partition("[limits]")[0]
    assert head.startswith(f"# OpenAI's published limits for usage tier {name[-1]}, ")
    assert f"--config {name}\n" in head
    for word in ("organisation", "may differ", "limits page", "x-ratelimit headers", "outrank this"):
        assert word in head


def test_all_tiers_have_the_same_models_and_the_same_prices():
    tiers = [loaded(name) for name in TIERS]
    assert len({tuple(tier.limits) for tier in tiers}) == 1
    assert all(tier.prices == tiers[0].prices for tier in tiers)


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(TIERS)))
@pytest.mark.parametrize("key", ModelLimits.model_fields)
def test_no_limit_shrinks_from_a_tier_to_the_next(lower, higher, key):
    below, above = loaded(lower).limits, loaded(higher).limits
    for model in below:
        was, now = (float(getattr(limits[model], key) or "inf") for limits in (below, above))
        assert was <= now, f"{model}: {key} {was} → {now}"


@pytest.mark.parametrize("name", TIERS)
def test_every_model_has_a_limit_of_requests_and_of_tokens_that_a_usual_prompt_fits(name):
    for model, limits in loaded(name).limits.items():
        assert limits.rpm is not None, model
        assert limits.tpm is not None, model
        assert limits.rpm < limits.tpm, f"{model}: requests and tokens changed places"
        assert limits.tpm >= 10_000, model


def test_figures_are_those_of_the_pages_they_name():
    one, five = loaded("openai-tier-1"), loaded("openai-tier-5")
    assert one.limits["gpt-4o"] == ModelLimits(rpm=500, tpm=30_000)
    assert one.limits["gpt-4o-mini"] == ModelLimits(rpm=500, tpm=200_000, rpd=10_000)
    assert five.limits["gpt-4o-mini"] == ModelLimits(rpm=30_000, tpm=150_000_000)
    assert (one.prices["gpt-4o"].input, one.prices["gpt-4o"].output) == (2.5, 10)


def test_a_name_stands_for_itself_and_its_dated_snapshots():
    settings = loaded("openai-tier-1")
    for name in settings.limits:
        assert [lane_of(model, settings.limits) for model in (name, f"{name}-2026-01-02")] == [name, name]
    for name in settings.prices:
        assert [priced_as(model, settings) for model in (name, f"{name}-2026-01-02")] == [name, name]


@pytest.mark.parametrize(
    ("model", "limits", "price"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-5-pro-2025-10-06", "gpt-5-pro", "gpt-5-pro"),
        ("gpt-5.6-sol", "gpt-5.6", "gpt-5.6"),
        ("gpt-5.6-terra", "gpt-5.6", "gpt-5.6-terra"),
        ("gpt-5.4-2026-03-05", "gpt-5", "gpt-5.4"),
        ("gpt-5.5-pro-2026-04-23", "gpt-5.5-pro", "gpt-5.5-pro"),
        ("o3-deep-research-2025-06-26", "o3-deep-research", "o3-deep-research"),
    ],
)
def test_a_family_member_is_not_taken_for_a_cheaper_or_faster_one(model, limits, price):
    settings = loaded("openai-tier-1")
    assert (lane_of(model, settings.limits), priced_as(model, settings)) == (limits, price)


def test_prices_are_in_dollars_per_million_and_in_their_columns():
    for name, price in loaded("openai-tier-1").prices.items():
        assert 0 < price.input <= 100, name
        assert price.output > price.input or name.startswith("text-embedding"), name
        assert price.cached_input is None or 0 < price.cached_input <= price.input / 2, name


# ── Other servers ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SERVERS)
def test_openais_key_goes_to_no_other_server(name):
    url = {"base_url": "https://resource.example/openai/v1/"} if name == "azure" else {}
    [target] = resolve(load(flags=url, config=name), env={"OPENAI_API_KEY": "openai's"})
    assert "openai.com" not in target.base_url
    assert target.api_key != "openai's"


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_asked_for_usage_but_for_nothing_it_does_not_know(name):
    job = Job(id="a", line=1, api=Api.CHAT, body={"messages": []}, stream=True, digest=0, size_bytes=0)
    body = orjson.loads(encode_body(job, model="m", stream_options=loaded(name).stream_options))
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("name", SERVERS)
def test_the_file_of_a_server_names_a_source(name):
    assert re.search(r"# .*https://(learn\.microsoft\.com|docs\.(vllm|ollama)\.|openrouter\.ai)", text_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_deadlines_are_in_order_and_end(name):
    settings = loaded(name)
    assert settings.idle_timeout <= settings.first_token_timeout < settings.total_timeout <= LONGEST_WAIT_S


def test_a_rehearsal_without_its_simulator_is_refused_though_there_is_a_key():
    with pytest.raises(UsageError, match="--simulate"):
        resolve(loaded("simulate"), env={"OPENAI_API_KEY": "sk-real"})


def test_a_forgotten_azure_url_never_meets_openais_key():
    with pytest.raises(UsageError, match="AZURE_OPENAI_API_KEY"):
        resolve(loaded("azure"), env={"OPENAI_API_KEY": "sk-real"})
