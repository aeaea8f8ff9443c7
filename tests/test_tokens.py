from __future__ import annotations

import hashlib
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import tokens
from runner.jobs import Api
from runner.tokens import AUDIO_TOKENS, FILE_TOKENS, IMAGE_TOKENS, MESSAGE_TOKENS, PRIMING_TOKENS, heuristic
from tests.scripted import chat_job

ENGLISH = (
    "The scheduler reads prompt files, fans them out as concurrent streams under the limits of the endpoint, and "
    "writes one final record for every job. When the server asks it to wait, it waits; when a stream breaks, it "
    "tries again, and it never counts a truncated answer as a success."
)
WORDS_AND_MARKS = len(re.findall(r"\w+|[^\w\s]", ENGLISH))
"""In plain English each is about a token."""
STRANGE: list[Any] = [-1, True, "7", 7.5, [], {}]


@pytest.fixture(autouse=True)
def _fresh_caches(monkeypatch):
    """Without tiktoken, whether or not it is installed; what was looked up is forgotten."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    yield from _forgetting()


def _forgetting():
    for cached in (tokens._encoding_for, tokens._is_cached):
        cached.cache_clear()
    yield
    for cached in (tokens._encoding_for, tokens._is_cached):
        cached.cache_clear()


def estimate(body, api=Api.CHAT, default=100):
    return tokens.estimate(chat_job(api=api, body=body), default_output_tokens=default)[0]


def method_for(body):
    return tokens.estimate(chat_job(body=body), default_output_tokens=100)[1]


def input_of(content, **message):
    found = estimate({"messages": [{"role": "user", "content": content, **message}]})
    return found.input_tokens - MESSAGE_TOKENS - PRIMING_TOKENS


# ── Input ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_heuristic_errs_upwards_on_plain_english_by_no_more_than_a_third():
    assert WORDS_AND_MARKS <= heuristic(ENGLISH) <= WORDS_AND_MARKS * 4 / 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("a", 1),
        ("abcd", 1),
        ("abcde", 2),
        ("é", 1),
        ("日本語", 2),
        ("日本語abcd", 3),
        ("😀", 1),
        ("\x7f\x80", 2),
    ],
)
def test_four_ascii_characters_or_one_and_a_half_others_are_a_token(text, expected):
    assert heuristic(text) == expected


@given(text=st.text())
def test_the_heuristic_counts_every_character_once(text):
    ascii_chars = sum(char < "\x80" for char in text)
    assert heuristic(text) == -(-ascii_chars // 4) + -(-2 * (len(text) - ascii_chars) // 3)


@given(first=st.text(), second=st.text())
def test_a_longer_text_is_never_fewer_tokens(first, second):
    assert heuristic(first) <= heuristic(first + second) <= heuristic(first) + heuristic(second)


@pytest.mark.parametrize(
    ("api", "body", "expected"),
    [
        (Api.CHAT, {"messages": [{"role": "user", "content": "12345678"}]}, 2 + MESSAGE_TOKENS),
        (Api.CHAT, {"messages": [{"role": "a", "content": "1234"}, {"role": "b", "content": "1234"}]}, 2 + 8),
        (Api.CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "1234"}]}]}, 1 + MESSAGE_TOKENS),
        (Api.CHAT, {"messages": [{"role": "user", "content": None}]}, MESSAGE_TOKENS),
        (Api.RESPONSES, {"input": "12345678"}, 2),
        (Api.RESPONSES, {"input": "1234", "instructions": "1234"}, 2),
        (Api.RESPONSES, {"input": [{"role": "user", "content": "1234"}]}, 1 + MESSAGE_TOKENS),
        (Api.COMPLETIONS, {"prompt": ["1234", "12345"]}, 3),
        (Api.COMPLETIONS, {"prompt": [1, 2, 3]}, 3),
        (Api.COMPLETIONS, {"prompt": [[1, 2], [3, 4, 5]]}, 5),
        (Api.EMBEDDINGS, {"input": ["1234", "1234"]}, 2),
    ],
)
def test_every_form_of_input_is_counted(api, body, expected):
    assert estimate(body, api).input_tokens == expected + PRIMING_TOKENS


@pytest.mark.parametrize("key", ["tools", "functions", "response_format", "text"])
def test_tools_and_schemas_are_counted_by_their_json(key):
    plain = {"messages": [{"role": "user", "content": "x"}]}
    value = [{"name": "n", "parameters": {"type": "object"}}]
    assert estimate({**plain, key: value}).input_tokens - estimate(plain).input_tokens == 12


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}, IMAGE_TOKENS),
        ({"type": "input_image", "image_url": "data:" + "A" * 10_000}, IMAGE_TOKENS),
        ({"type": "computer_screenshot", "image_url": "data:" + "A" * 10_000}, IMAGE_TOKENS),
        ({"type": "image_generation_call", "result": "A" * 10_000}, IMAGE_TOKENS),
        ({"type": "input_audio", "input_audio": {"data": "A" * 10_000, "format": "wav"}}, AUDIO_TOKENS),
        ({"type": "file", "file": {"file_data": "A" * 10_000}}, FILE_TOKENS),
        ({"type": "input_file", "file_data": "A" * 10_000}, FILE_TOKENS),
    ],
)
def test_an_image_a_recording_and_a_file_are_constants_whatever_their_size(part, expected):
    assert input_of([part]) == expected
    assert input_of([part, part, {"type": "text", "text": "1234"}]) == 2 * expected + 1


@pytest.mark.parametrize("kind", [None, 3, ["image"], {"image": 1}])
def test_a_type_that_is_no_text_is_no_image(kind):
    assert input_of([{"type": kind, "text": "1234"}]) == 1


# ── Output ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 100),
        ({"max_tokens": 7}, 7),
        ({"max_output_tokens": 8}, 8),
        ({"max_completion_tokens": 9, "max_tokens": 7}, 9),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": None}, 100),
        *(({"max_tokens": strange}, 100) for strange in STRANGE),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"n": 3}, 300),
        *(({"max_tokens": 7, "n": strange}, 7) for strange in [None, 0, *STRANGE]),
    ],
)
def test_the_output_is_the_cap_times_the_choices(body, expected):
    assert estimate({"messages": [], **body}).output_tokens == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "a"}, 7),
        ({"prompt": ["a", "b", "c"]}, 21),
        ({"prompt": [[1], [2]], "n": 2}, 28),
        ({"prompt": [1, 2, 3]}, 7),
        ({"prompt": []}, 7),
        ({"prompt": "a", "best_of": 4, "n": 2}, 28),
        ({"prompt": ["a", "b"], "best_of": 4}, 56),
    ],
)
def test_a_legacy_completion_generates_for_every_prompt(body, expected):
    assert estimate({**body, "max_tokens": 7}, Api.COMPLETIONS).output_tokens == expected


def test_best_of_means_nothing_to_the_other_apis():
    assert estimate({"messages": [], "best_of": 4, "max_tokens": 7}).output_tokens == 7


def test_an_embedding_has_no_output():
    assert estimate({"input": "x", "max_tokens": 5}, Api.EMBEDDINGS).output_tokens == 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    *("messages", "input", "prompt", "instructions", "tools", "functions", "text", "response_format"),
    *("max_tokens", "max_completion_tokens", "n", "best_of"),
]


@given(body=st.dictionaries(st.sampled_from(KEYS), JSON), api=st.sampled_from(Api))
def test_any_body_has_an_estimate(body, api):
    found = estimate(body, api)
    assert found.input_tokens >= PRIMING_TOKENS
    assert found.output_tokens >= 0
    assert isinstance(found.output_tokens, int)


def test_a_million_models_are_not_remembered():
    for i in range(1_000):
        tokens._encoding_for(f"model-{i}")
    assert tokens._encoding_for.cache_info().currsize <= tokens._MODELS_REMEMBERED


# ── tiktoken ─────────────────────────────────────────────────────────────────────────────────────────────────────


class FakeEncoding:
    """A token a word."""

    def encode_ordinary(self, text):
        return text.split()


@pytest.fixture
def tiktoken(monkeypatch, tmp_path):
    """A tiktoken that may not be asked for an encoding that it would have to fetch; its cache is `folder`."""
    data = b"the vocabulary"
    url = tokens._VOCABULARIES["o200k_base"].url
    wanted = tokens._Vocabulary(url, hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(tokens._VOCABULARIES, "o200k_base", wanted)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    path = tmp_path / hashlib.sha1(url.encode()).hexdigest()
    path.write_bytes(data)
    known = {"gpt-4o": "o200k_base", "gpt-oss": "o200k_harmony"}

    def name_of(model):
        return known[model]

    def get(name):
        assert (name, path.read_bytes()) == ("o200k_base", data), "would be fetched"
        return FakeEncoding()

    fake = SimpleNamespace(encoding_name_for_model=name_of, get_encoding=get, path=path)
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    return fake


def body_of(text, model="gpt-4o"):
    return {"model": model, "messages": [{"role": "user", "content": text}]}


@pytest.mark.usefixtures("tiktoken")
@pytest.mark.parametrize("model", ["gpt-4o", "a-model-of-next-year"])
def test_tiktoken_counts_where_its_vocabulary_is_cached(model):
    body = body_of("three short words", model)
    assert method_for(body) == "tiktoken"
    assert estimate(body).input_tokens == 3 + MESSAGE_TOKENS + PRIMING_TOKENS


@pytest.mark.usefixtures("tiktoken")
@pytest.mark.parametrize("model", [None, "gpt-oss"])
def test_without_a_model_or_a_known_vocabulary_the_heuristic_counts(model):
    assert method_for(body_of("three short words", model)) == "heuristic"


@pytest.mark.usefixtures("tiktoken")
def test_a_very_long_text_is_estimated():
    assert method_for(body_of("x " * (tokens.TIKTOKEN_MAX_CHARS // 2))) == "tiktoken"
    assert method_for(body_of("x " * tokens.TIKTOKEN_MAX_CHARS)) == "heuristic"


@pytest.mark.parametrize("damage", [b"", b"the vocab", None])
def test_a_missing_or_damaged_vocabulary_is_never_fetched(tiktoken, damage):
    tiktoken.path.unlink()
    if damage is not None:
        tiktoken.path.write_bytes(damage)
    assert method_for(body_of("words")) == "heuristic"


def test_an_empty_variable_means_no_cache_to_tiktoken_and_so_to_us(tiktoken, monkeypatch):
    monkeypatch.chdir(tiktoken.path.parent)  # an empty folder is no name for this one
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert method_for(body_of("words")) == "heuristic"


def test_the_older_variable_names_the_cache_too(tiktoken, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tiktoken.path.parent))
    assert method_for(body_of("words")) == "tiktoken"
