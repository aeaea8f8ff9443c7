from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from runner.errors import UsageError
from runner.settings import Settings, load, parse_duration
from runner.target import resolve

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def clean_env(monkeypatch):
    for key in Settings.model_fields:
        monkeypatch.delenv(f"RUNNER_{key.upper()}", raising=False)


def test_default_toml_holds_the_built_in_defaults_and_names_every_setting():
    text = (ROOT / "configs/default.toml").read_text("utf-8")
    values = tomllib.loads(text)
    assert Settings(**values) == Settings()
    commented = {line[2:].split(" =")[0] for line in text.splitlines() if line.startswith("# ") and " = " in line}
    assert set(Settings.model_fields) <= set(values) | commented | {"prices", "limits", "endpoints"}


def test_flags_outrank_environment_outranks_file_outranks_defaults(tmp_path, monkeypatch):
    file = tmp_path / "c.toml"
    file.write_text("rpm = 1\ntpm = 2\nmax_attempts = 3\n")
    monkeypatch.setenv("RUNNER_TPM", "20")
    monkeypatch.setenv("RUNNER_MAX_ATTEMPTS", "30")
    found = load(flags={"max_attempts": 40}, config=str(file))
    assert (found.rpm, found.tpm, found.max_attempts, found.idle_timeout) == (1, 20, 40, 60)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("2h30m", 9000.0), ("1.5m", 90.0), ("250ms", 0.25), (7, 7.0), ("1d", 86400.0)],
)
def test_durations(value, seconds):
    assert load(flags={"deadline": value}).deadline == seconds


@pytest.mark.parametrize("value", ["", "h", "1x", "-5", "nan", "inf", "0", "1h 2"])
def test_a_bad_duration_is_refused_with_its_flag(value):
    with pytest.raises(UsageError, match="--deadline"):
        load(flags={"deadline": value})


def test_parse_duration_leaves_other_types_to_pydantic():
    assert parse_duration(None) is None


def test_an_unknown_key_in_a_file_is_refused_by_name(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("rmp = 10\n")
    with pytest.raises(UsageError, match=r"c\.toml: unknown key 'rmp'"):
        load(flags={}, config=str(file))


def test_an_unknown_variable_is_refused_by_name_but_not_those_of_github():
    with pytest.raises(UsageError, match="RUNNER_RMP"):
        load(flags={}, env={"RUNNER_RMP": "10"})
    load(flags={}, env={"RUNNER_OS": "Linux", "RUNNER_TEMP": "/t"})


def test_a_bad_value_names_its_source(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNNER_CONCURRENCY", "many")
    with pytest.raises(UsageError, match="environment variable RUNNER_CONCURRENCY"):
        load(flags={}, env={"RUNNER_CONCURRENCY": "many"})
    with pytest.raises(UsageError, match="--concurrency"):
        load(flags={"concurrency": "0"})


def test_a_file_that_is_not_toml_is_refused(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("rpm = = 1")
    with pytest.raises(UsageError, match=r"c\.toml"):
        load(flags={}, config=str(file))


def test_a_config_is_found_by_name_and_an_unknown_name_lists_the_known():
    assert load(flags={}, config="default") == Settings()
    with pytest.raises(UsageError, match="default"):
        load(flags={}, config="no-such")


def test_fail_on_takes_words(monkeypatch):
    monkeypatch.setenv("RUNNER_FAIL_ON", "length, content_filter")
    assert load(flags={}).fail_on == {"length", "content_filter"}


def test_a_log_level_is_taken_in_small_letters_too():
    assert Settings(log_level="debug").log_level == "DEBUG"


def test_prices_come_from_a_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[prices."m-1"]\ninput = 1\noutput = 2\n')
    assert load(flags={}, config=str(file)).prices["m-1"].output == 2


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://h/v1", "h/v1", "http://", "http://h:99999/v1", "http://[::1/v1", "http://a..b/v1", "http://h o/v1"),
        *("http://user:pw@h/v1", "http://h/v1?x=y", "http://h/v1#f", "http://h:0/v1"),
    ],
)
def test_a_base_url_that_cannot_work_is_refused_before_anything_is_sent(url):
    with pytest.raises(UsageError, match="--base-url"):
        load(flags={"base_url": url})
    with pytest.raises(UsageError, match="OPENAI_BASE_URL"):
        resolve(Settings(), {"OPENAI_BASE_URL": url})


@pytest.mark.parametrize("url", ["http://h", "https://h:8443/v1/", "http://[::1]:8000/v1", "http://bücher.example/v1"])
def test_a_base_url_that_can_work_is_taken_as_it_is(url):
    assert load(flags={"base_url": url}).base_url == url
