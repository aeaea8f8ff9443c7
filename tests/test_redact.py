from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import re
import sys
import traceback
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

import orjson
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import assume, example, given
from hypothesis import strategies as st

from runner import redact as module
from runner.limits import MAX_ERROR_TEXT_CHARS
from runner.redact import _SHAPES, CUT, FOLDED, REPLACEMENT, RedactingFilter, Redactor, _keep_place, _Walk, shortened
from runner.spellings import forms_of
from runner.wiring import redactor_for
from tests.process import by_id, environment, run, write_jobs
from tests.raw_server import listening

KEY = 'canary+"key/ é 7f3'  # everything that an encoding changes
KEYS = st.text(st.characters(codec="utf-8"), min_size=8, max_size=40)


def encodings(key):
    data = key.encode()
    return {
        "plain": key,
        "url": quote(key),
        "query": quote(key, safe=""),
        "json": json.dumps(key),
        "unescaped json": json.dumps(key, ensure_ascii=False),
        "repr": repr(key),
        "all of JSON escaped": "".join(f"\\u{ord(c):04X}" if not re.match("[A-Za-z0-9]", c) else c for c in key),
        "JSON for a page": json.dumps(key).replace("+", "\\u002b"),
        "JSON in JSON": json.dumps(json.dumps(key)[1:-1]),
        "JSON with slashes": json.dumps(key).replace("/", "\\/"),
        "javascript": "".join(f"\\x{ord(c):02x}" if not re.match("[A-Za-z0-9]", c) else c for c in key),
        "HTML": html.escape(key),
        "bytes": repr(data),
        "bytes in a repr": repr(f"{key!r}".encode()),
        "latin-1": data.decode("latin-1"),
        "browser": quote(key, safe="!'()*"),
        "path": quote(key, safe="!$&'()*+,;=:@/"),
        "query in a query": quote(quote(key, safe=""), safe=""),
        "base64": base64.b64encode(data).decode(),
        "basic": base64.b64encode(b"user:" + data + b":x").decode(),
        "base64 in a query": quote(base64.b64encode(data), safe=""),
        "capitals": key.upper(),
        "small letters": key.lower(),
        "hexadecimal": data.hex(),
        "every byte percent-encoded": "".join(f"%{byte:02x}" for byte in data),
        "a query in small letters": quote(key, safe="").lower(),
        "numbers of HTML": "".join(f"&#{ord(c)};" if not re.match("[A-Za-z0-9]", c) else c for c in key),
        "hexadecimal numbers of HTML": "".join(f"&#x{ord(c):X};" for c in key),
        "every letter of JSON escaped": "".join(f"\\u{ord(c):04x}" for c in key),
        "urlsafe": base64.urlsafe_b64encode(b"u:" + data).decode(),
    }


@pytest.mark.parametrize("form", encodings(KEY))
def test_a_known_key_is_found_however_it_is_written(form):
    text = encodings(KEY)[form]
    shown = Redactor([KEY]).redact(f"before {text} after")
    assert text.strip("\"'") not in shown
    assert REPLACEMENT in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@given(KEYS, st.text(max_size=20), st.text(max_size=20))
def test_whatever_the_key_it_does_not_get_through(key, before, after):
    shown = Redactor([key]).redact(f"{before} {key} {after}")
    assert key not in shown.replace(REPLACEMENT, "") or key in REPLACEMENT


@given(st.text())
def test_twice_is_the_same_as_once(text):
    redactor = Redactor([KEY])
    once = redactor.redact(text + KEY)
    assert redactor.redact(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcDEF123456",
        "{'api-key': 'abcDEF123456'}",
        '{"x-api-key": "abcDEF123456"}',
        "[(b'authorization', b'Bearer abcDEF123456')]",
        "https://u:abcDEF123456@proxy:8080/",
        "https://h/v1?api_key=abcDEF123456&x=1",
        "Incorrect API key provided: sk-abcDEF123456.",
    ],
)
def test_an_unknown_key_is_found_by_where_it_stands(text):
    shown = Redactor().redact(text)
    assert "abcDEF123456" not in shown
    assert REPLACEMENT in shown


@pytest.mark.parametrize(
    "text", ["a bearer of bad news", "basic training", "the key is under the mat", "task-force", "http://h/v1/models"]
)
def test_prose_is_left_alone(text):
    assert Redactor(["none"]).redact(text) == text


@pytest.mark.parametrize("placeholder", ["x", "abc", "k-1", "none", "EMPTY", "ollama", "dummy", "Secret", "ключ"])
def test_a_placeholder_for_a_key_is_no_secret(placeholder):
    text = f"{placeholder} a{placeholder} {placeholder}theless, {placeholder}."
    assert Redactor([placeholder]).redact(text) == text


def test_even_a_placeholder_is_redacted_where_a_key_stands():
    assert "EMPTY" not in Redactor(["EMPTY"]).redact("Authorization: Bearer EMPTY")


def test_a_short_key_is_no_part_of_longer_words():
    redactor = Redactor(["k-12", "hunter2"])
    assert redactor.redact("k-12 k-120 k-12, hunter2 hunter22") == (
        f"{REPLACEMENT} k-120 {REPLACEMENT}, {REPLACEMENT} hunter22"
    )


@given(st.text("abcdefgh", min_size=4, max_size=7), st.lists(st.text("abcdefgh", min_size=1, max_size=9)))
def test_ordinary_words_survive_a_key_of_less_than_eight_letters(key, words):
    assert Redactor([key]).redact(" ".join(words)) == " ".join(words)


# ── A text that was shortened ────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_as_long_as_may_be_counts_as_cut():
    assert [shortened(text, 5) for text in ("", "abcd", "abcde", "abcdefgh")] == ["", "abcd", "abcd…", "abcd…"]


@pytest.mark.parametrize("form", sorted({form.text for form in forms_of(KEY)} | {"k-12"}))
def test_wherever_a_known_secret_is_cut_nothing_of_it_is_left(form):
    redactor = Redactor([KEY, "k-12"])
    before = "denied: "
    for kept in range(1, len(form) + 1):
        cut = shortened(f"{before}{form} and more", len(before) + kept + 1)
        assert redactor.redact(cut) == f"{before}…", cut
        assert redactor.redact_json({"error": [cut, KEY]}) == {"error": [f"{before}…", REPLACEMENT]}


@pytest.mark.parametrize(
    ("before", "secret"),
    [
        ("Bearer ", "abcDEF123456"),
        ("Authorization: Basic ", "dXNlcjpwYXNzd29yZA=="),
        ('{"api-key": "', "abcDEF123456"),
        ("https://h/v1?api_key=", "abcDEF123456"),
        ("https://u:", "abcDEF123456@proxy:8080/"),
        ("provided: ", "sk-abcDEF123456"),
    ],
)
def test_wherever_what_looks_like_a_secret_is_cut_nothing_of_it_is_left(before, secret):
    for kept in range(3 if secret.startswith("sk-") else 1, len(secret) + 1):
        cut = shortened(before + secret + "x", len(before) + kept + 1)
        shown = Redactor().redact(cut)
        assert "abc" not in shown
        assert "dXN" not in shown
        assert shown.startswith(before)
        assert shown.endswith("…")


@given(st.text(max_size=60), st.integers(1, 61))
@example("sk-abcDEF12 said so", 12)
def test_a_shortened_text_without_secrets_loses_a_few_letters_at_most(text, most):
    assume("@" not in text)
    cut = shortened(text.lower().replace("sk-", ""), most)
    shown = Redactor(["Qx7" * 9]).redact(cut)
    assert REPLACEMENT in shown or cut.removesuffix("…").startswith(shown.removesuffix("…"))


def refusing(key: str) -> AbstractAsyncContextManager[int]:
    """A server that names the key at the offset that a prompt asks for, in the way that its model asks for."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
            asked = orjson.loads(await reader.readexactly(int(length)))
            offset = int(asked["messages"][0]["content"])
            writer.write(said(asked["model"], "~" * offset + key + "~" * 3_000))

    return listening(answer)


def said(way: str, text: str) -> bytes:
    status, kind, body = b"200 OK", b"text/event-stream", b""
    error = orjson.dumps({"error": {"message": text, "code": "server_error"}})
    match way:
        case "json":
            status, kind, body = b"400 Bad Request", b"application/json", error
        case "text":
            status, kind, body = b"500 Internal Server Error", b"text/plain", text.encode()
        case "in the stream":
            body = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: %b\n\n' % error
        case "an event of its own":
            body = b"event: error\ndata: %b\n\n" % text.encode()
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body)


def test_a_key_that_a_server_names_across_the_cut_of_its_message_is_in_no_file_and_no_stream(tmp_path):
    key = "7fQx-2mZk_98LpTT0aWv"
    ways = ("json", "text", "in the stream", "an event of its own")
    offsets = range(MAX_ERROR_TEXT_CHARS - len(key) - 2, MAX_ERROR_TEXT_CHARS + 3)
    jobs = [
        {"custom_id": f"{way} {at}", "model": way, "prompt": str(at), "max_tokens": 1} for way in ways for at in offsets
    ]
    write_jobs(tmp_path / "jobs.jsonl", jobs)
    options = ("--log-level", "DEBUG", "--max-attempts", 2, "--progress", "json", "--echo", "--concurrency", 64)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(refusing(key)) as port:
        env = environment(OPENAI_API_KEY=key, OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
        ended = run("jobs.jsonl", *options, "--out", "out", cwd=tmp_path, env=env)
    assert ended.code == 1, ended.stderr
    found = by_id(tmp_path / "out")
    assert len(found) == len(jobs)
    assert {len(record["error"]["message"]) > 1_900 for record in found.values()} == {True}
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} | {"shown": str(ended)}
    parts = [key[at : at + 2] for at in range(len(key) - 1)]
    for name, text in written.items():
        assert "~7" not in text, f"the first of the key is in {name}"
        assert [part for part in parts if f"~{part}" in text or f"{part}~" in text] == [], name


# ── The quick way finds what the slow one does ───────────────────────────────────────────────────────────────────────


class Slow(Redactor):
    """Every expression over every character, every value on its own."""

    def _redact_whole(self, text):
        if self._known.pattern:
            text = self._known.sub(REPLACEMENT, text)
        return _SHAPES.sub(_keep_place, text)

    def redact_json(self, value):
        return _Walk(self).copy(value)


SECRETS = [KEY, "aaaaaaaa", "k-12", "12345678", "sk-live-Ab3", 'q"":\\,"zz', "пароль-пароль", "1e5,true", "e\nsk-x\tyz"]
PIECES = [
    *("sk-", "SK-", "ſK-", "sk-abcdefgh", "risk-", "-", "_", "é", "日", "🧛", "\x1f", "\u00a0", "\ud800"),
    *(
        "Bearer ",
        "bearer\t",
        "basic ",
        "BAS\u0131C ",
        "Authorization",
        "AuthorIzation",
        "api-key",
        "API_\u212aEY",
        "apikey",
    ),
    *("…", '…"', "s…", 'canary+"ke…'),
    *(": ", "=", "='", '":"', "', b'", "?", "&", "key=", "to\u212aen=", "SIG=", "signature=", "x" * 39, "x" * 41),
    *("//", "/", "@", "u:", "http://u:p@h", " ", "\n", "a", "A1", "dXNlcjpwYXNz", "abcdefgh1234", '"', "\\", ","),
    *("aaaaaaa", "1234567", "8", "k-1", "2", "sk-live", "-Ab3", *SECRETS, *encodings(KEY).values()),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text()
VALUES = st.recursive(
    TEXTS | st.integers() | st.sampled_from([12345678, 1.5, True, None, 10**5]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=20,
)
QUICK, SLOW = Redactor(SECRETS), Slow(SECRETS)


@given(TEXTS, st.integers(0, 3))
@example("?" + "x" * 40 + "key=abcdefgh", 1)
@example("?x&key=abcdefgh bearer abcdefgh1", 3)
def test_the_quick_way_finds_in_a_text_what_the_slow_one_does(text, padding):
    # Padding makes the places sparse: short texts go another way.
    text = ("lorem ipsum " * 10 * padding).join(["", text, text, ""])
    assert QUICK.redact(text) == SLOW.redact(text)


@given(VALUES)
@example(["\\", "sk-abcdefghij"])
@example({'a\\"': ['"', "e\\nsk-abcdefghij"], "b": [12345678, "12345678"]})
@example([[12345678], "1234567"])
@example({"a": 1e5, "b": True, "c": "1e5,true"})
def test_the_quick_way_finds_in_a_value_what_the_slow_one_does(value):
    assert QUICK.redact_json(value) == SLOW.redact_json(value)


@given(st.lists(TEXTS, max_size=5))
def test_many_short_strings_are_not_walked_over(texts):
    value = {"content": [{"token": text, "bytes": [1, 2]} for text in [*texts, *("token",) * 50]]}
    assert QUICK.redact_json(value) == SLOW.redact_json(value)


def test_a_long_answer_takes_no_pass_of_an_expression(monkeypatch):
    """What made ten megabytes take seconds: expressions over every character, Python for every value."""

    class Never:
        def sub(self, *_):
            raise AssertionError("an expression went over all of it")

        def match(self, text, at):
            tried.append(at)
            return _SHAPES.match(text, at)

    class NoWalk:
        def __init__(self, redactor):
            raise AssertionError("every value was visited")

    tried: list[int] = []
    monkeypatch.setattr(module, "_SHAPES", Never())
    prose = (
        "A basic risk-free plan, see https://example.org/plan?page=1, me@example.org; tokens are bearer tokens. " * 99
    )
    assert QUICK.redact(prose) == prose
    assert len(tried) < len(prose) // 20
    monkeypatch.undo()
    monkeypatch.setattr(module, "_Walk", NoWalk)
    value = [{"token": word, "logprob": -0.5} for word in prose.split()]
    assert QUICK.redact_json(value) is value
    hidden = QUICK.redact_json([*value, {KEY: f"my {KEY}"}])
    assert hidden == [*value, {REPLACEMENT: f"my {REPLACEMENT}"}]


def test_every_character_that_an_expression_takes_for_a_letter_is_known():
    letter = re.compile("[a-z]", re.IGNORECASE)
    found = {c for c in map(chr, range(128, sys.maxunicode + 1)) if letter.match(c)}
    assert found == set(FOLDED)


# ── A canary in every place ──────────────────────────────────────────────────────────────────────────────────────────

TOKENS = st.text("abcXYZ019+/=-_.~", min_size=12, max_size=60)
NESTINGS = st.lists(st.sampled_from(["json", "repr", "bytes", "url", "html", "ascii"]), max_size=2)
WRAPPED = {
    "json": lambda text: json.dumps({"error": text}),
    "ascii": lambda text: json.dumps([text], ensure_ascii=False),
    "repr": lambda text: repr([(b"x-auth", text)]),
    "bytes": lambda text: repr(text.encode()),
    "url": lambda text: f"https://h/p?q={quote(text, safe='')}",
    "html": lambda text: f"<p>{html.escape(text)}</p>",
}


@given(TOKENS, st.sampled_from(["plain", "user", "basic"]), NESTINGS, st.text("ab {}:,", max_size=9))
def test_no_wrapping_hides_a_canary(token, form, nesting, around):
    assume(any(c.isalnum() for c in token))
    text = {"plain": token, "user": f"//u:{token}@h", "basic": base64.b64encode(f"u:{token}".encode()).decode()}[form]
    core = max(re.split("[^A-Za-z0-9]+", text if form == "basic" else token), key=len)
    assume(len(core) >= 8)
    for name in nesting:
        text = WRAPPED[name](text)
    redactor = Redactor([token])
    shown = redactor.redact(around + text + around)
    inside = core[6:-6] if form == "basic" else core  # what base64 shares with "u:" and with what follows stays
    assert len(inside) < 8 or inside not in shown
    assert len(inside) < 8 or inside not in str(redactor.redact_json({text: [around, {"a": text}]}))


@given(TOKENS)
def test_no_canary_is_left_in_a_traceback(token):
    try:
        try:
            raise KeyError(token)
        except KeyError as cause:
            cause.add_note(f"sent {token!r}")
            raise RuntimeError({"headers": [(b"authorization", f"Bearer {token}".encode())]}) from cause
    except RuntimeError as error:
        shown = Redactor([token]).redact("".join(traceback.format_exception(error)))
    assert token not in shown
    assert "RuntimeError" in shown


def test_what_json_can_not_say_is_redacted_too():
    redactor = Redactor([KEY])
    value = {1: {KEY, "a"}, "s": f"\ud800 {KEY}", "big": 1 << 70, "e": ValueError(KEY), "nan": float("nan")}
    shown = redactor.redact_json(value)
    assert KEY not in str(shown)
    assert repr(KEY)[1:-1] not in str(shown)
    assert shown["big"] == 1 << 70
    assert orjson.loads(orjson.dumps(redactor.redact_json({"a": [1.5, KEY]}))) == {"a": [1.5, REPLACEMENT]}


def test_json_is_redacted_in_keys_and_values_and_bounded():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    loop: dict = {}
    loop["loop"] = loop
    shown = Redactor([KEY]).redact_json({KEY: [KEY, {"x": (KEY, b"y" + KEY.encode())}], "deep": deep, "loop": loop})
    text = repr(shown)
    assert KEY not in text
    assert repr(KEY)[1:-1] not in text
    assert CUT in text


def log_of(*args, exc_info=None, **extra):
    record = logging.makeLogRecord({"msg": args[0], "args": args[1:], "exc_info": exc_info, **extra})
    RedactingFilter(Redactor([KEY])).filter(record)
    return logging.Formatter("%(message)s").format(record) + repr(record.__dict__)


def test_a_log_record_is_clean_in_message_arguments_and_fields():
    shown = log_of("said %s %r", KEY, KEY, headers={"authorization": KEY})
    assert KEY not in shown
    assert "said" in shown


def test_a_log_record_is_clean_in_its_traceback():
    try:
        raise ValueError(KEY)
    except ValueError as error:
        shown = log_of("failed", exc_info=(type(error), error, error.__traceback__))
    assert KEY not in shown
    assert "ValueError" in shown


def test_arguments_that_do_not_fit_do_not_raise_into_a_run():
    assert "can't be shown" in log_of("%d items", "no number")


def test_what_opens_a_proxy_is_in_no_message_of_the_proxys(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:p%40ss-canary@127.0.0.1:8080")
    monkeypatch.setenv("HTTP_PROXY", "http://token-canary@127.0.0.1:8080")
    monkeypatch.setenv("ALL_PROXY", "http://[user:broken@")
    said = redactor_for([]).redact(
        "no user p@ss-canary or p%40ss-canary, nor token-canary, nor dXNlcjpwQHNzLWNhbmFyeQ=="
    )
    assert said == "no user [redacted] or [redacted], nor [redacted], nor dXNlcj[redacted]"
