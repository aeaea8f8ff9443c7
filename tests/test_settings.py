from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from runner import settings
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


@pytest.mark.parametrize("wrong", [{"api_key": "sk-canary"}, {"base_url": "http://u:sk-canary@h/v1"}])
def test_what_was_put_in_a_wrong_place_stands_in_no_message(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as raised:
        Settings(**wrong)
    assert "canary" not in str(raised.value) + repr(raised.value)


@pytest.mark.parametrize("value", ["", "h", "1x", "soon"])
def test_what_is_no_duration_is_told_what_one_looks_like(value):
    with pytest.raises(UsageError, match="such as 250ms, 90s, 5m or 2h30m"):
        load(flags={"deadline": value})


def test_parse_duration_leaves_other_types_to_pydantic():
    assert parse_duration(None) is None


def test_an_unknown_key_in_a_file_is_refused_by_name(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("rmp = 10\n")
    with pytest.raises(UsageError, match=r"c\.toml: unknown key 'rmp' \(did you mean rpm\?\)$"):
        load(flags={}, config=str(file))
    file.write_text('[limits."m"]\nconcurency = 10\n')
    with pytest.raises(UsageError, match=r"unknown key 'limits\.m\.concurency' \(did you mean concurrency\?\)$"):
        load(flags={}, config=str(file))
    file.write_text("colour = 10\n")
    with pytest.raises(UsageError, match=r"unknown key 'colour'$"):
        load(flags={}, config=str(file))


@pytest.mark.parametrize("text", ["[limits]\nrpm = 5\n", "limits = 5\n", "prices = 5\n"])
def test_a_number_where_a_table_belongs_says_so_and_where_one_is_shown(text, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"(limits|limits\.rpm|prices) must be a table, as in configs/default\.toml"):
        load(flags={}, config=str(file))


def test_an_unknown_variable_is_refused_by_name_but_not_those_of_github():
    with pytest.raises(UsageError, match=r"RUNNER_RMP: .*\(did you mean RUNNER_RPM\?\)"):
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


def test_an_installed_package_lists_the_configurations_that_it_brings(tmp_path, monkeypatch):
    (tmp_path / "site" / "runner" / "configs").mkdir(parents=True)
    (tmp_path / "site" / "runner" / "configs" / "brought.toml").touch()
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "site" / "runner" / "settings.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there are: brought\)"):
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


def test_a_seed_that_no_manifest_could_hold_is_refused():
    with pytest.raises(UsageError, match="--seed"):
        load(flags={"seed": "99999999999999999999999"})
