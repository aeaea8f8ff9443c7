from __future__ import annotations

import pytest
from pydantic import ValidationError

from runner.errors import UsageError
from runner.settings import Settings
from runner.target import resolve, simulated


def test_without_key_and_server_it_offers_both_ways_out():
    with pytest.raises(UsageError, match=r"OPENAI_API_KEY.*--base-url.*--simulate"):
        resolve(Settings(), {})
    with pytest.raises(UsageError, match="MY_KEY"):
        resolve(Settings(api_key_env="MY_KEY"), {"OPENAI_API_KEY": "k", "MY_KEY": "  "})


def test_the_key_goes_to_openai_by_default():
    [found] = resolve(Settings(), {"OPENAI_API_KEY": "k"})
    assert (found.base_url, found.api_key) == ("https://api.openai.com/v1", "k")


@pytest.mark.parametrize("key", ["“sk-canary”", "sk-can\nary", "ключ", "sk-\x7f"])
@pytest.mark.parametrize("settings", [Settings(base_url="http://h/v1"), Settings(endpoints=({"name": "one"},))])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(settings, key):
    """Quotation marks from a document, half of a file: each job would fail by it, after all its attempts."""
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as refused:
        resolve(settings, {"OPENAI_API_KEY": key})
    assert key not in str(refused.value)
    assert resolve(settings, {"OPENAI_API_KEY": " sk-k\r\n"})[0].api_key == "sk-k"  # the end of a line is no part of it


@pytest.mark.parametrize("name", ["OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
@pytest.mark.parametrize("settings", [Settings(base_url="http://h/v1"), Settings(endpoints=({"name": "one"},))])
def test_what_else_goes_into_headers_is_looked_at_too(settings, name):
    with pytest.raises(UsageError, match=name):
        resolve(settings, {"OPENAI_API_KEY": "k", name: "proj_ü"})
    assert resolve(settings, {"OPENAI_API_KEY": "k", name: "proj_1"})


def test_a_server_of_ones_own_needs_no_key():
    assert resolve(Settings(base_url="http://h/v1"), {})[0].base_url == "http://h/v1"


def test_openai_base_url_is_honoured_and_named():
    [found] = resolve(Settings(), {"OPENAI_BASE_URL": "http://h/v1"})
    assert (found.base_url, found.origin) == ("http://h/v1", "OPENAI_BASE_URL")
    assert resolve(Settings(base_url="http://g/v1"), {"OPENAI_BASE_URL": "http://h/v1"})[0].base_url == "http://g/v1"


POOL = Settings(
    endpoints=(
        {"name": "one", "api_key_env": "KEY_1"},
        {"name": "two", "api_key_env": "KEY_2"},
        {"name": "local", "base_url": "http://h/v1", "models": ["m"]},
    )
)


def test_several_endpoints_have_a_key_each_and_a_local_one_needs_none():
    found = resolve(POOL, {"KEY_1": "a", "KEY_2": "b"})
    assert [(target.settings and target.settings.name, target.base_url, target.api_key) for target in found] == [
        ("one", "https://api.openai.com/v1", "a"),
        ("two", "https://api.openai.com/v1", "b"),
        ("local", "http://h/v1", "no-key"),
    ]
    with pytest.raises(UsageError, match=r"endpoint two.*KEY_2"):
        resolve(POOL, {"KEY_1": "a"})


def test_a_rehearsal_puts_the_simulator_in_the_place_of_every_endpoint():
    azure = {"name": "az", "kind": "azure", "api_version": "2024-10-21", "base_url": "https://r.openai.azure.com"}
    found = simulated(Settings(endpoints=(azure, {"name": "b"})), "http://s/v1")
    assert {target.base_url for target in found} == {"http://s/v1"}
    assert len({target.api_key for target in found}) == 2
    assert found[0].settings is not None
    assert found[0].settings.api_version is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a b"},
        {"name": ""},
        {"name": "a", "kind": "azure"},
        {"name": "a", "api_version": "2024-10-21"},
        {"name": "a", "base_url": "ftp://h"},
        {"name": "a", "key": "sk-secret"},
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        Settings(endpoints=(wrong,))


def test_two_endpoints_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="same name"):
        Settings(endpoints=({"name": "a"}, {"name": "a"}))
