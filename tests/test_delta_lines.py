"""A line of deltas.jsonl is the same whether its delta came by itself or with others."""

from __future__ import annotations

from typing import Any, cast

import orjson
from hypothesis import given
from hypothesis import strategies as st

from runner.delta_lines import DeltaLines
from runner.deltas import Delta, DeltaKind, Texts


class Lines:
    """A journal that keeps what it is given."""

    def __init__(self):
        self.content = b""

    def delta(self, line):
        self.content += line


def lines_of(write):
    journal = Lines()
    lines = DeltaLines(cast("Any", journal), 'a "%d"', keeps=True)
    lines.begin(1)
    write(lines)
    return journal.content


@given(st.lists(st.tuples(st.integers(0, 10**14), st.text(min_size=1)), min_size=1, max_size=5))
def test_a_text_alone_and_one_among_others_are_written_alike(arrived):
    texts = [text for _, text in arrived]
    written = [orjson.dumps(text) for text in texts]
    together = Texts([after_ns for after_ns, _ in arrived], written, texts, b'{"100%":"%b","content":', b',"index":0}')

    def alone(lines):
        for after_ns, text in arrived:
            payload = {"100%": "%b", "content": text, "index": 0}
            lines.add(Delta(DeltaKind.TEXT, payload, text), after_ns / 1e9)

    assert lines_of(lambda lines: lines.add_texts(together)) == lines_of(alone)
