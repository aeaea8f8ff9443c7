from __future__ import annotations

import pytest

from runner.errors import UsageError
from runner.settings import Settings
from runner.target import resolve


def test_without_key_and_server_it_offers_both_ways_out():
    with pytest.raises(UsageError, match=r"OPENAI_API_KEY.*--base-url.*--simulate"):
        resolve(Settings(), {})
    with pytest.raises(UsageError, match="MY_KEY"):
        resolve(Settings(api_key_env="MY_KEY"), {"OPENAI_API_KEY": "k", "MY_KEY": "  "})


def test_the_key_goes_to_openai_by_default():
    found = resolve(Settings(), {"OPENAI_API_KEY": "k"})
    assert (found.base_url, found.api_key) == ("https://api.openai.com/v1", "k")


def test_a_server_of_ones_own_needs_no_key():
    assert resolve(Settings(base_url="http://h/v1"), {}).base_url == "http://h/v1"


def test_openai_base_url_is_honoured_and_named():
    found = resolve(Settings(), {"OPENAI_BASE_URL": "http://h/v1"})
    assert (found.base_url, found.origin) == ("http://h/v1", "OPENAI_BASE_URL")
    assert resolve(Settings(base_url="http://g/v1"), {"OPENAI_BASE_URL": "http://h/v1"}).base_url == "http://g/v1"
