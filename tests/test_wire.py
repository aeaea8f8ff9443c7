from __future__ import annotations

import orjson
import pytest

from runner.jobs import Api, Job
from runner.wire import choices_of, encode_body


def job(api=Api.CHAT, *, stream=True, **body):
    return Job(id="a", line=1, api=api, body=body, stream=stream, digest=0, size_bytes=0)


def sent(a_job, *, model=None, stream_options="openai"):
    return orjson.loads(encode_body(a_job, model=model, stream_options=stream_options))


def test_a_stream_asks_for_usage_and_against_padding():
    assert sent(job())["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert sent(job(), stream_options="usage")["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(job(), stream_options="none")


def test_responses_have_no_usage_option():
    assert sent(job(Api.RESPONSES))["stream_options"] == {"include_obfuscation": False}
    assert "stream_options" not in sent(job(Api.RESPONSES), stream_options="usage")


def test_what_the_line_says_wins():
    body = sent(job(stream_options={"include_usage": False, "x": 1}, model="m"), model="other")
    assert body["stream_options"] == {"include_usage": False, "include_obfuscation": False, "x": 1}
    assert body["model"] == "m"


def test_the_default_model_fills_a_gap():
    assert sent(job(), model="m")["model"] == "m"


def test_a_plain_job_says_so_and_sends_no_stream_options():
    assert sent(job(stream=False, stream_options={"include_usage": True})) == {"stream": False}


def test_embeddings_are_sent_as_they_are():
    assert sent(job(Api.EMBEDDINGS, stream=False, input="x"), model="e") == {"model": "e", "input": "x"}


def test_unknown_keys_go_through():
    assert sent(job(future_key={"a": [1]}))["future_key"] == {"a": [1]}


@pytest.mark.parametrize(
    ("api", "body", "choices"),
    [
        (Api.CHAT, {}, 1),
        (Api.CHAT, {"n": 3}, 3),
        (Api.CHAT, {"n": None}, 1),
        (Api.CHAT, {"n": True}, 1),
        (Api.COMPLETIONS, {"prompt": "x", "n": 2}, 2),
        (Api.COMPLETIONS, {"prompt": ["x", "y"], "n": 2}, 4),
        (Api.COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (Api.COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2),
    ],
)
def test_how_many_choices_an_answer_owes(api, body, choices):
    assert choices_of(job(api, **body)) == choices
