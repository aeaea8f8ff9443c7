"""Whatever a line holds, it is a job or a named rejection, and both can be written as JSON."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.jobs import Api, Job, Rejected, StopAfter
from runner.limits import MAX_CUSTOM_ID_CHARS, MAX_JSON_DEPTH, MAX_JSON_VALUES
from runner.lines import LineSplitter
from runner.parsing import JobParser, Reason
from runner.wire import encode_body

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"messages": MESSAGES}
NO_FLAGS: list[Any] = ["false", 0, 1, []]
NO_OBJECTS: list[Any] = [[1], [], "x", True, 1]
REASONS = {reason.name.lower() for reason in Reason}


def encoded(*values):
    """Lines: bytes as they are, other values as JSON."""
    return b"\n".join(value if isinstance(value, bytes) else orjson.dumps(value) for value in values)


def parse(*values, source="f.jsonl", max_bytes=1 << 24):
    splitter, parser = LineSplitter(max_bytes), JobParser(source, max_line_bytes=max_bytes)
    return [parser.parse(line) for line in splitter.feed(encoded(*values)) + splitter.finish()]


def one(value, **kwargs):
    (item,) = parse(value, **kwargs)
    return item


def job(value):
    item = one(value)
    assert isinstance(item, Job), item
    return item


def code(value, **kwargs):
    item = one(value, **kwargs)
    return item.code if isinstance(item, Rejected) else item


def batch(url="/v1/chat/completions", body=None, **keys):
    return {"custom_id": "a", "method": "POST", "url": url, "body": CHAT if body is None else body, **keys}


# ── Forms ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Api.CHAT, {"model": "m", "messages": MESSAGES, "temperature": 0, "metadata": {"k": "v"}}),
        (Api.RESPONSES, {"model": "m", "input": "hi", "metadata": {"k": "v"}, "id": "inner"}),
        (Api.RESPONSES, {"input": [{"role": "user", "content": "hi"}], "stop_after": "untouched"}),
        (Api.RESPONSES, {"prompt": {"id": "pmpt_1"}}),
        (Api.COMPLETIONS, {"model": "m", "prompt": "hi"}),
        (Api.COMPLETIONS, {"prompt": ["a", "b"]}),
        (Api.COMPLETIONS, {"prompt": [1, 2, 3]}),
        (Api.EMBEDDINGS, {"input": ["a", "b"], "dimensions": 8}),
    ],
)
def test_the_batch_form_is_read_unchanged(prefix, api, body):
    found = job(batch(prefix + api.value, body))
    assert (found.id, found.api, found.body) == ("a", api, body)


@pytest.mark.parametrize(
    ("line", "api", "body"),
    [
        ({"messages": MESSAGES, "model": "m", "seed": 1}, Api.CHAT, {"messages": MESSAGES, "model": "m", "seed": 1}),
        ({"input": "hi", "model": "m"}, Api.RESPONSES, {"input": "hi", "model": "m"}),
        ({"input": ""}, Api.RESPONSES, {"input": ""}),
        ({"prompt": "hi"}, Api.CHAT, {"messages": MESSAGES}),
        ({"prompt": "hi", "n": 2}, Api.CHAT, {"messages": MESSAGES, "n": 2}),
        ({"prompt": ""}, Api.CHAT, {"messages": [{"role": "user", "content": ""}]}),
        ({"prompt": "hi", "system": None}, Api.CHAT, {"messages": MESSAGES}),
        (
            {"prompt": "hi", "system": "be brief"},
            Api.CHAT,
            {"messages": [{"role": "system", "content": "be brief"}, *MESSAGES]},
        ),
        ({"prompt": "hi", "url": "/v1/completions"}, Api.COMPLETIONS, {"prompt": "hi"}),
        ({"prompt": "hi", "url": "/v1/chat/completions"}, Api.CHAT, {"messages": MESSAGES}),
        ({"input": "hi", "url": "/v1/embeddings", "method": "POST"}, Api.EMBEDDINGS, {"input": "hi"}),
        # Mixtures: the first of body, messages, input, prompt says what the line is, and the rest goes through.
        ({"messages": MESSAGES, "prompt": "p", "input": "i"}, Api.CHAT, {**CHAT, "prompt": "p", "input": "i"}),
        ({"input": "i", "prompt": {"id": "p"}}, Api.RESPONSES, {"input": "i", "prompt": {"id": "p"}}),
        ({"messages": MESSAGES, "system": "s"}, Api.CHAT, {**CHAT, "system": "s"}),
        ({"messages": "x", "prompt": "p", **batch()}, Api.CHAT, CHAT),
    ],
)
def test_forms_are_told_apart_by_their_keys(line, api, body):
    found = job(line)
    assert (found.api, found.body) == (api, body)


def test_all_forms_mix_in_one_file():
    lines = [batch(), CHAT, {"input": "hi"}, {"prompt": "hi"}, batch("/v1/embeddings", {"input": "e"}, custom_id="b")]
    assert [item.api for item in parse(*lines)] == [Api.CHAT, Api.CHAT, Api.RESPONSES, Api.CHAT, Api.EMBEDDINGS]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "hi", "simulate": {"fault": "reset", "times": 1}},
        {"messages": MESSAGES, "simulate": {"fault": "reset"}},
        {"input": "hi", "simulate": {"fault": "reset"}},
        batch(body={**CHAT, "simulate": {"fault": "reset"}}),
    ],
)
def test_a_rehearsal_and_other_unknown_keys_go_through_untouched(line):
    found = job(line)
    wanted = line.get("simulate") or line["body"]["simulate"]
    assert found.body["simulate"] == wanted
    sent = orjson.loads(encode_body(found, model=None, stream_options="openai"))
    assert sent["simulate"] == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({}, Reason.UNKNOWN_FORM),
        ({"custom_id": "a", "text": "hi"}, Reason.UNKNOWN_FORM),
        (batch(method="GET"), Reason.INVALID_METHOD),
        (batch(method=["POST"]), Reason.INVALID_METHOD),
        (batch(url="/v1/images"), Reason.INVALID_URL),
        (batch(url={"a": 1}), Reason.INVALID_URL),
        (batch(url="https://elsewhere/v1/chat/completions"), Reason.INVALID_URL),
        (batch(url=None), Reason.INVALID_URL),
        (batch() | {"body": None}, Reason.INVALID_BODY),
        (batch() | {"body": [CHAT]}, Reason.INVALID_BODY),
        (batch() | {"body": "{}"}, Reason.INVALID_BODY),
        (batch(body={}), Reason.INVALID_MESSAGES),
        ({"messages": []}, Reason.INVALID_MESSAGES),
        ({"messages": "hi"}, Reason.INVALID_MESSAGES),
        ({"messages": ["hi"]}, Reason.INVALID_MESSAGES),
        ({"messages": [{"content": "hi"}]}, Reason.INVALID_MESSAGES),
        ({"messages": [{"role": 1}]}, Reason.INVALID_MESSAGES),
        ({"messages": None, "prompt": "hi"}, Reason.INVALID_MESSAGES),
        ({"prompt": None}, Reason.INVALID_PROMPT),
        ({"prompt": ["a"]}, Reason.INVALID_PROMPT),
        ({"prompt": "a", "system": 1}, Reason.INVALID_PROMPT),
        (batch("/v1/completions", {"prompt": 3}), Reason.INVALID_PROMPT),
        (batch("/v1/completions", {}), Reason.INVALID_PROMPT),
        ({"input": None}, Reason.INVALID_INPUT),
        ({"input": {"a": 1}}, Reason.INVALID_INPUT),
        (batch("/v1/responses", CHAT), Reason.INVALID_INPUT),
        (batch("/v1/embeddings", {"prompt": "hi"}), Reason.INVALID_INPUT),
        ({"prompt": "hi", "model": 3}, Reason.INVALID_MODEL),
        ({"prompt": "hi", "model": ""}, Reason.INVALID_MODEL),
        *(({"prompt": "hi", "n": n}, Reason.INVALID_N) for n in (0, -1, 129, 1.0, "2", True, [1])),
        *(({"prompt": "hi", "stream": value}, Reason.INVALID_STREAM) for value in NO_FLAGS),
        (batch(body={**CHAT, "stream": "no"}), Reason.INVALID_STREAM),
        *(({"prompt": "hi", "stream_options": x}, Reason.INVALID_STREAM_OPTIONS) for x in NO_OBJECTS),
    ],
)
def test_what_cannot_be_a_job_is_rejected_by_name(line, reason):
    assert code(line) == reason.name.lower()


# ── stream, stop_after, metadata ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "stream"),
    [
        ({"prompt": "hi"}, True),
        ({"prompt": "hi", "stream": None}, True),
        ({"prompt": "hi", "stream": True}, True),
        ({"prompt": "hi", "stream": False}, False),
        ({"input": "hi", "stream": False}, False),
        (batch(), True),
        (batch(stream=False), False),
        (batch(body={**CHAT, "stream": False}), False),
        (batch(body={**CHAT, "stream": True}, stream=False), True),
        (batch(body={**CHAT, "stream": None}, stream=False), False),
        (batch("/v1/embeddings", {"input": "e"}), False),
        (batch("/v1/embeddings", {"input": "e", "stream": True}), False),
    ],
)
def test_a_job_streams_unless_its_line_says_false(line, stream):
    found = job(line)
    assert found.stream is stream
    assert "stream" not in found.body


@pytest.mark.parametrize(
    ("value", "stop_after"),
    [
        (None, None),
        ({"chunks": 1}, StopAfter(chunks=1)),
        ({"chars": 5}, StopAfter(chars=5)),
        ({"chars": (1 << 64) - 1}, StopAfter(chars=(1 << 64) - 1)),
    ],
)
def test_stop_after_counts_chunks_or_chars(value, stop_after):
    assert job({"prompt": "hi", "stop_after": value}).stop_after == stop_after
    assert job(batch(stop_after=value)).stop_after == stop_after


@pytest.mark.parametrize(
    "value",
    [
        *({"chunks": count} for count in (0, -1, 1.0, 1e30, True, None, "5", [5])),
        *({}, {"chunks": 1, "chars": 1}, {"tokens": 5}, {"chunks": 1, "x": 1}, 5, [], "chunks", True),
    ],
)
def test_any_other_stop_after_is_rejected(value):
    assert code({"prompt": "hi", "stop_after": value}) == "invalid_stop_after"


@pytest.mark.parametrize("line", [{"prompt": "hi", "stream": False}, {"url": "/v1/embeddings", "input": "hi"}])
def test_stop_after_needs_a_stream(line):
    assert code({**line, "stop_after": {"chunks": 1}}) == "invalid_stop_after"


@pytest.mark.parametrize("metadata", [{"k": "v"}, "text", 0, False, [], {"deep": [{"er": None}]}])
def test_metadata_is_kept_and_not_sent(metadata):
    for line in ({"prompt": "hi"}, {"input": "hi"}, CHAT, batch()):
        found = job({**line, "metadata": metadata})
        assert found.metadata == metadata
        assert "metadata" not in found.body


def test_a_rejection_keeps_its_metadata_and_its_id():
    item = one({"custom_id": "x", "metadata": {"k": 1}, "nothing": "known"})
    assert (item.code, item.custom_id, item.metadata) == ("unknown_form", "x", {"k": 1})


# ── custom_id ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    ["a", "../../etc/passwd", "a\nb", "\x00\x1b[31m", " ", "\u2028", "é" * MAX_CUSTOM_ID_CHARS, "job-" + "0" * 32],
)
def test_a_hostile_custom_id_is_only_a_name(name):
    assert job({"custom_id": name, "prompt": "hi"}).id == name
    assert job({"id": name, "prompt": "hi"}).id == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * (MAX_CUSTOM_ID_CHARS + 1), "x" * 1_000_000, True, 1.5, [], {}, ["a"], {"a": 1}, 10**30 + 0.5),
        "line-" + "0" * 32,  # those of rejected lines
    ],
)
def test_an_unusable_custom_id_is_rejected_and_not_repeated(name):
    item = one({"custom_id": name, "prompt": "hi"})
    assert (item.code, item.custom_id) == ("invalid_custom_id", None)
    assert len(item.reason) < 300


def test_a_number_as_id_becomes_its_text():
    assert job({"custom_id": 17, "prompt": "hi"}).id == "17"
    assert job({"custom_id": 0, "prompt": "hi"}).id == "0"


def test_custom_id_goes_before_id_and_null_is_none():
    assert job({"custom_id": "a", "id": "b", "prompt": "hi"}).id == "a"
    assert job({"custom_id": None, "id": "b", "prompt": "hi"}).id == "b"
    assert job({"custom_id": None, "id": None, "prompt": "hi"}).id == job({"prompt": "hi"}).id


def test_the_first_line_with_an_id_keeps_it():
    first, second, third = parse(
        {"custom_id": "a", "prompt": "1"}, {"custom_id": "a", "prompt": "2"}, {"id": "a", "prompt": "1"}
    )
    assert (first.id, first.body["messages"][0]["content"]) == ("a", "1")
    assert [(item.code, item.custom_id) for item in (second, third)] == [("duplicate_custom_id", None)] * 2
    assert len({first.id, second.id, third.id}) == 3


def test_the_first_line_keeps_its_id_even_if_it_is_no_job():
    first, second = parse({"custom_id": "a"}, {"custom_id": "a", "prompt": "2"})
    assert (first.code, first.custom_id) == ("unknown_form", "a")
    assert (second.code, second.custom_id) == ("duplicate_custom_id", None)


def test_every_item_has_an_id_of_its_own():
    lines = [
        {"prompt": "hi"},
        {"prompt": "hi"},
        b"{",
        b"{",
        {"custom_id": "a"},
        {"custom_id": "a"},
        batch(),
        CHAT,
        CHAT,
    ]
    ids = [item.id for item in parse(*lines)]
    assert len(set(ids)) == len(ids)


def test_a_rejection_names_file_line_and_reason():
    _, item = parse(b"\n", CHAT, b"\r", b'{"prompt": 1}', source="dir/jobs.jsonl")
    assert item.line == 5
    assert item.reason == "dir/jobs.jsonl:5: prompt or system isn't a string"


def test_a_file_name_that_is_not_utf8_can_be_written():
    assert orjson.dumps(one(b"{", source="b\udcffd.jsonl").reason).startswith(b'"b\\\\udcffd.jsonl:1: ')


# ── Derived ids and digests ──────────────────────────────────────────────────────────────────────────────────────

ANONYMOUS = [{"prompt": f"p{i % 3}"} for i in range(6)] + [
    CHAT,
    batch(custom_id=None),
    {"input": "x"},
    b"[",
    b"[",
    b"{",
]


def by_content(items):
    """Ids of each content; which of two equal lines is first doesn't matter."""
    return {(item.id, repr(item.body) if isinstance(item, Job) else item.code) for item in items}


ADDED = [{"prompt": "new"}, {"prompt": "new"}, {"prompt": "p1"}, b"{"]


@given(lines=st.permutations(ANONYMOUS + ADDED))
def test_derived_ids_are_stable_when_lines_are_reordered_or_added(lines):
    before = by_content(parse(*ANONYMOUS))
    assert len(before) == len(ANONYMOUS)
    assert before < by_content(parse(*lines))


def test_spelling_and_key_order_make_no_other_job():
    first = job(b'{"prompt":"hi","seed":1,"logit_bias":{"1":2,"3":4}}')
    second = job(
        b' {"logit_bias": {"3":4, "1":2}, "seed" : 1, "pr\\u006fmpt": "hi", "stream": true, "stop_after": null}\r'
    )
    assert (first.id, first.digest) == (second.id, second.digest)
    assert first.id.startswith("job-")


@pytest.mark.parametrize(
    "change",
    [{"prompt": "ho"}, {"seed": 1}, {"model": "m"}, {"stream": False}, {"stop_after": {"chunks": 1}}, {"simulate": {}}],
)
def test_another_request_has_another_digest_and_another_derived_id(change):
    line = {"prompt": "hi"}
    first, second = job(line), job({**line, **change})
    assert first.digest != second.digest
    assert first.id != second.id


def test_the_same_body_for_another_api_is_another_request():
    responses, embeddings = job(batch("/v1/responses", {"input": "a"})), job(batch("/v1/embeddings", {"input": "a"}))
    assert responses.digest != embeddings.digest


def test_metadata_is_no_part_of_what_is_asked_but_tells_lines_apart():
    first, second = job({"prompt": "hi", "metadata": {"k": 1}}), job({"prompt": "hi", "metadata": {"k": 2}})
    assert first.digest == second.digest
    assert first.id != second.id
    named = [job({"custom_id": "a", "prompt": "hi", "metadata": metadata}) for metadata in (None, 1, {"k": 2})]
    assert len({(item.id, item.digest) for item in named}) == 1


def test_metadata_inside_a_body_is_asked():
    assert job(batch(body={**CHAT, "metadata": {"k": "1"}})).digest != job(batch()).digest


def test_a_line_that_names_a_derived_id_keeps_it_and_the_others_get_the_next():
    derived = job({"prompt": "hi"}).id
    given_first, then = parse({"custom_id": derived, "prompt": "other"}, {"prompt": "hi"})
    assert given_first.id == derived
    assert isinstance(then, Job)
    assert then.id != derived
    first, given_later = parse({"prompt": "hi"}, {"custom_id": derived, "prompt": "other"})
    assert first.id == derived
    assert given_later.code == "duplicate_custom_id"


def test_a_later_occurrence_makes_way_for_a_line_that_names_its_id():
    second = parse({"prompt": "hi"}, {"prompt": "hi"})[1].id
    items = parse({"custom_id": second, "prompt": "x"}, *[{"prompt": "hi"}] * 3)
    assert all(isinstance(item, Job) for item in items)
    assert len({item.id for item in items}) == 4


def test_a_million_distinct_lines_would_take_one_entry_each():
    parser, splitter = JobParser(), LineSplitter()
    for line in splitter.feed(b"".join(b'{"prompt":"%d"}\n' % i for i in range(200))):
        parser.parse(line)
    assert len(parser._seen) == 200


# ── Garbage ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\x00", Reason.INVALID_JSON),
        (b'{"prompt": "a\x00b"}', Reason.INVALID_JSON),
        (b'{"prompt": "hi"', Reason.INVALID_JSON),
        (b'{"prompt": "hi"} {"prompt": "ho"}', Reason.INVALID_JSON),
        (b"{'prompt': 'hi'}", Reason.INVALID_JSON),
        (b'{"prompt": "hi", "seed": NaN}', Reason.INVALID_JSON),
        (b'{"prompt": "hi", "seed": -Infinity}', Reason.INVALID_JSON),
        (b'{"prompt": "hi", "seed": ' + b"7" * 5_000 + b"}", Reason.INVALID_JSON),
        (b'{"prompt": "hi", "seed": 1e999}', Reason.INVALID_JSON),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", Reason.INVALID_JSON),
        (b"# a comment", Reason.INVALID_JSON),
        (b'{"prompt": "\xff"}', Reason.INVALID_UTF8),
        (b'{"prompt": "\xed\xa0\x80"}', Reason.INVALID_UTF8),
        (b"\xff\xfe{\x00}\x00", Reason.INVALID_UTF8),
        (b"\x1f\x8b\x08\x00", Reason.INVALID_UTF8),
        (b'{"prompt": "\\ud800"}', Reason.INVALID_UNICODE),
        (b'{"prompt": "\\udc00"}', Reason.INVALID_UNICODE),
        (b'{"prompt": "\\ud800\\u0041"}', Reason.INVALID_UNICODE),
        (b'{"\\ud800": 1}', Reason.INVALID_UNICODE),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b'{"a":' * 100_000, Reason.TOO_DEEP),
        (b'{"prompt": "hi", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Reason.TOO_DEEP),
        (b"[]", Reason.NOT_AN_OBJECT),
        (b'[{"prompt": "hi"}]', Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (b'"text"', Reason.NOT_AN_OBJECT),
        (b"3.5", Reason.NOT_AN_OBJECT),
    ],
)
def test_garbage_is_rejected_by_name(line, reason):
    item = one(line)
    assert item.code == reason.name.lower()
    assert (item.custom_id, item.metadata) == (None, None)
    assert len(item.reason) < 400


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (b'{"prompt": "ho", "prompt": "hi"}', {"messages": MESSAGES}),
        (b'{"prompt": "hi", "seed": 123456789012345678901}', {"messages": MESSAGES, "seed": 123456789012345678901.0}),
        (b'{"prompt": "hi", "seed": 18446744073709551615}', {"messages": MESSAGES, "seed": (1 << 64) - 1}),
        (
            '{"prompt": "a\u2028b\u2029c\x85"}'.encode(),
            {"messages": [{"role": "user", "content": "a\u2028b\u2029c\x85"}]},
        ),
        (b'{"prompt": "\\u0000"}', {"messages": [{"role": "user", "content": "\x00"}]}),
        (b'{"prompt": "\\ud83d\\ude00"}', {"messages": [{"role": "user", "content": "😀"}]}),
    ],
)
def test_what_is_strange_but_json_is_a_job(line, body):
    assert job(line).body == body


def nested(levels):
    """A line whose objects and arrays are `levels` deep, the line's own object counted."""
    return b'{"prompt": "hi", "metadata": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_the_depth_is_bounded_exactly_and_leaves_room_to_embed():
    found = job(nested(MAX_JSON_DEPTH))
    orjson.dumps({"a": [{"b": [{"runner": found.metadata}]}]})
    assert code(nested(MAX_JSON_DEPTH + 1)) == "too_deep"
    assert code(nested(255)) == "too_deep"  # orjson reads it, and could not write it


@pytest.mark.parametrize("value", [b"[],", b"{},", b"0,", b"[0],", b'{"a":{}},'])
def test_a_line_of_too_many_values_is_rejected_before_they_take_memory(value):
    line = b'{"prompt": "hi", "x": [' + value * MAX_JSON_VALUES + b"0]}"
    tracemalloc.start()
    try:
        assert code(line, max_bytes=1 << 26) == "too_many_values"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(line)


def test_a_long_text_is_not_too_many_values():
    assert len(job({"prompt": "a text, " * (MAX_JSON_VALUES // 4)}).body["messages"][0]["content"]) > MAX_JSON_VALUES


def test_a_line_over_the_bound_is_rejected_with_both_lengths():
    long, job_after, again = parse(b"x" * 101, CHAT, b"x" * 101, max_bytes=100)
    assert (long.code, long.custom_id) == ("line_too_long", None)
    assert "101 bytes, at most 100" in long.reason
    assert isinstance(job_after, Job)
    assert again.id != long.id


def test_a_rejected_line_has_the_same_id_in_a_second_run():
    lines = [b"{", b"x" * 200, {"custom_id": "a"}, CHAT, b"{", {"custom_id": "a", "prompt": "p"}]
    assert [item.id for item in parse(*lines, max_bytes=100)] == [item.id for item in parse(*lines, max_bytes=100)]


# ── Fuzz ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_sound(item):
    """A job or a named rejection, of which all can be written and none is lost."""
    assert isinstance(item, Job | Rejected)
    assert isinstance(item.id, str)
    assert item.id
    orjson.dumps([item.id, item.line, item.metadata])
    if isinstance(item, Rejected):
        assert item.code in REASONS
        assert orjson.loads(orjson.dumps([item.custom_id, item.reason])) == [item.custom_id, item.reason]
        assert "\n" not in item.reason
        return
    assert len(item.id) <= MAX_CUSTOM_ID_CHARS
    assert 0 <= item.digest < 1 << 64
    orjson.dumps({"response": {"body": {"echo": item.body}}, "metadata": item.metadata})
    sent = orjson.loads(encode_body(item, model="m", stream_options="openai"))
    assert item.body.keys() - {"stream_options"} <= sent.keys()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["POST", "a", "user", *(f"/v1{api.value}" for api in Api)])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    *("custom_id", "id", "method", "url", "body", "messages", "input", "prompt", "system", "metadata"),
    *("stop_after", "stream", "stream_options", "n", "model", "max_tokens", "simulate"),
]
BODIES = st.sampled_from([CHAT, {"input": "x"}, {"prompt": "x"}, {"prompt": ["x"]}])
FORMS = st.dictionaries(
    st.sampled_from(KEYS), VALUES | BODIES | st.just(MESSAGES) | st.just({"chunks": 2}), min_size=1, max_size=7
)


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"")
@example(b"\xef\xbb\xbf")
def test_any_bytes_are_jobs_or_rejections(data):
    for item in parse(data):
        is_sound(item)


@given(lines=st.lists(FORMS, max_size=4))
def test_any_values_under_our_keys_are_jobs_or_rejections(lines):
    items = parse(*map(jsonable, lines))
    assert len(items) == len(lines)
    for item in items:
        is_sound(item)
    assert len({item.id for item in items}) == len(items)


@given(line=FORMS, cut=st.integers(0, 200), junk=st.binary(max_size=3))
def test_any_damage_to_a_line_is_a_job_or_a_rejection(line, cut, junk):
    data = orjson.dumps(jsonable(line))
    for item in parse(data[:cut] + junk + data[cut:]) + parse(data[:cut]):
        is_sound(item)


def jsonable(value):
    """What orjson can write: integers of 64 bits."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [jsonable(inner) for inner in value]
    return float(value) if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64 else value
