"""Two load tests side by side: what differs in how they were made, then each change and whether it is noise. Pure.

Levels are matched by kind and value. The rule, in this order:
1. A level that is bound by its client in either test is shown and not judged: it measures the client. Neither is one
   that was cut short. Where other repeats of it are sound, those alone are compared. A suspect one is judged, and its
   reasons stand beside it.
2. Both have at least MIN_REPEATS repeats: Welch's t-test on the repeats' figures, 99 %.
3. Otherwise within one run (noise.py): beyond noise where the two 95 % intervals don't touch, which is about 99 % for
   the difference, and the change exceeds ACCURACY. What is no sample of its own (a rate) isn't judged without repeats.
4. A percentile's change must also exceed 2 %, the error of two sketches.

Accepted: rule 3 knows nothing of what changes from run to run (another neighbour on the machine, another cache), which
only repeats show; the text says so. At 99 % one of a hundred unchanged rows still looks changed; within one run of an
almost full queue, which remembers longer than a stretch of the run lasts, it may be several.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runner.escape import for_line
from runner.load.definitions import BY_KEY
from runner.load.figures import NONE, duration, plain, share
from runner.load.markup import Markup, element, join
from runner.load.noise import Noise, Range, welch
from runner.load.page import Cell, facts, page, table
from runner.load.quantiles import PERCENTILES
from runner.load.results import Level, LoadResult
from runner.sketch import RELATIVE_ERROR

MIN_REPEATS: Final = 3
"""With two, the variance is a guess from one difference."""
ACCURACY: Final = 0.02
"""A smaller change of a latency is none within one run: so much the measuring itself may be off, and mostly the next
run of the same server is as far away."""
Judgement = Literal["better", "worse", "changed", "noise", "not judged"]
Pick = Callable[[Level], float | None]


class Difference(NamedTuple):
    """Something that was not the same in both."""

    name: str
    a: str
    b: str


class Row(NamedTuple):
    """One figure of one level in both tests."""

    name: str
    a: str
    b: str
    change: str
    judgement: Judgement
    why: str


class Matched(NamedTuple):
    """One level that both have."""

    label: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What there is to say about two load tests."""

    a: str
    b: str
    differences: tuple[Difference, ...]
    levels: tuple[Matched, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that is compared, and how far it may be off within one run."""

    name: str
    pick: Pick
    write: Callable[[float | None], str]
    higher_is_better: bool | None
    spread: Callable[[Noise], Range | None]
    tolerance: float = 0.0
    """Relative change that the way of measuring alone can make."""
    accuracy: float = 0.0
    """Relative change that one run of each can tell at best."""


def compare(a: LoadResult, b: LoadResult, name_a: str = "A", name_b: str = "B") -> Comparison:
    """B against A: a change of +10 % means that B has more."""
    groups_a, groups_b = _groups(a), _groups(b)
    return Comparison(
        name_a,
        name_b,
        tuple(_differences(a, b)),
        tuple(_matched(groups_a[key], groups_b[key]) for key in groups_a if key in groups_b),
        tuple(levels[0].label for key, levels in groups_a.items() if key not in groups_b),
        tuple(levels[0].label for key, levels in groups_b.items() if key not in groups_a),
    )


def _groups(result: LoadResult) -> dict[tuple[str, float], list[Level]]:
    groups: dict[tuple[str, float], list[Level]] = defaultdict(list)
    for level in result.levels:
        groups[level.kind, level.value].append(level)
    return dict(sorted(groups.items()))


def _sound(levels: Sequence[Level]) -> Sequence[Level]:
    """The repeats that say something of the server; all where none does."""
    return [level for level in levels if level.complete and not level.client_bound] or levels


# ── What differs ─────────────────────────────────────────────────────────────────────────────────────────────────

_FIRST: Final = (
    "model",
    "endpoint",
    "synthetic",
    "workload",
    "arrival",
    "slo",
    "runner",
    "versions",
    "host",
    "settings",
)
"""What makes two tests hard to compare, worst first."""
_BY_CHANCE: Final = frozenset({"workload.salt"})
"""Another in every folder, on purpose: a server's prefix cache must not know the prompts of the test before."""


def _differences(a: LoadResult, b: LoadResult) -> Iterator[Difference]:
    flat_a, flat_b = (_flat({key: _plainly(getattr(r, key)) for key in (*_FIRST, "seed", "complete")}) for r in (a, b))
    for name in dict.fromkeys((*flat_a, *flat_b)):
        before, after = flat_a.get(name, NONE), flat_b.get(name, NONE)
        if before != after and name not in _BY_CHANCE:
            yield Difference(name, before, after)


def _plainly(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{name}.{key}" if name else str(key))
        return found
    return {name: NONE if value is None else str(value)}


# ── One level ────────────────────────────────────────────────────────────────────────────────────────────────────


def _matched(a: Sequence[Level], b: Sequence[Level]) -> Matched:
    used = _sound(a), _sound(b)
    noise = Noise(used[0][0]), Noise(used[1][0])
    rows = (_row(measure, *used, noise) for measure in MEASURES)
    notes = (*_left_out(a, b), *_notes(*used))
    return Matched(a[0].label, notes, tuple(row for row in rows if row is not None))


def _left_out(a: Sequence[Level], b: Sequence[Level]) -> Iterator[str]:
    for name, levels in (("A", a), ("B", b)):
        if left := len(levels) - len(_sound(levels)):
            yield f"{left} of {len(levels)} repeats in {name} left out: cut short or client-bound"


def _notes(a: Sequence[Level], b: Sequence[Level]) -> Iterator[str]:
    for name, levels in (("A", a), ("B", b)):
        if any(level.client_bound for level in levels):
            yield f"client-bound in {name}: not judged, it measures the client"
        elif suspect := [level.client for level in levels if level.client.verdict == "suspect"]:
            yield f"suspect in {name}: {'; '.join(suspect[0].reasons)}"
        if any(not level.complete for level in levels):
            yield f"cut short in {name}: not judged"
    if len(a) != len(b) or len(a) > 1:
        yield f"repeats: {len(a)} in A, {len(b)} in B"


def _row(measure: Measure, a: Sequence[Level], b: Sequence[Level], noise: tuple[Noise, Noise]) -> Row | None:
    known_a, known_b = _known(measure, a), _known(measure, b)
    if not known_a and not known_b:
        return None
    mean_a = statistics.fmean(known_a) if known_a else None
    mean_b = statistics.fmean(known_b) if known_b else None
    written = (measure.name, measure.write(mean_a), measure.write(mean_b))
    if mean_a is None or mean_b is None:
        return Row(*written, NONE, "not judged", "unknown in one")
    change = (mean_b - mean_a) / abs(mean_a) if mean_a else (math.inf if mean_b else 0.0)
    beyond, why = _beyond_noise(measure, a, b, change, noise)
    return Row(*written, _change(change), _judgement(beyond, mean_b - mean_a, measure.higher_is_better), why)


def _known(measure: Measure, levels: Sequence[Level]) -> list[float]:
    return [value for level in levels if (value := measure.pick(level)) is not None]


def _change(change: float) -> str:
    if math.isinf(change):
        return "from 0"
    return "0 %" if abs(change) < 0.0005 else f"{100 * change:+,.1f} %"


def _judgement(beyond: bool | None, change: float, higher_is_better: bool | None) -> Judgement:
    if beyond is None:
        return "not judged"
    if not beyond:
        return "noise"
    if higher_is_better is None:
        return "changed"
    return "better" if (change > 0) == higher_is_better else "worse"


def _beyond_noise(
    measure: Measure, a: Sequence[Level], b: Sequence[Level], change: float, noise: tuple[Noise, Noise]
) -> tuple[bool | None, str]:
    """Whether a change is more than noise, None where that can't be said; and by which rule.

    `noise` is that of the first level of each: of the only one, where it counts.
    """
    if any(level.client_bound for level in (*a, *b)):
        return None, "client-bound"
    if not all(level.complete for level in (*a, *b)):
        return None, "cut short"
    known_a, known_b = _known(measure, a), _known(measure, b)
    if (len(known_a), len(known_b)) != (len(a), len(b)):
        return None, "unknown in a repeat"  # the ones left out would have been the extreme ones
    if min(len(known_a), len(known_b)) >= MIN_REPEATS:
        return abs(change) > measure.tolerance and welch(known_a, known_b), "repeats"
    if len(a) > 1 or len(b) > 1:
        return None, "few repeats"
    range_a, range_b = (measure.spread(each) for each in noise)
    if range_a is None or range_b is None:
        return None, "too little"
    apart = range_a.high < range_b.low or range_b.high < range_a.low
    return apart and abs(change) > max(measure.tolerance, measure.accuracy), "one run"


# ── What is compared ─────────────────────────────────────────────────────────────────────────────────────────────


def _metric(key: str, statistic: str) -> Measure:
    metric = BY_KEY[key]

    def pick(level: Level) -> float | None:
        found: float | None = getattr(level.metric(key), statistic)
        return found

    def spread(noise: Noise) -> Range | None:
        return noise.mean(key) if statistic == "mean" else noise.quantile(key, PERCENTILES[statistic])

    write = duration if metric.unit == "s" else plain
    tolerance = 0.0 if statistic == "mean" else 2 * RELATIVE_ERROR
    accuracy = ACCURACY if metric.unit != "tokens" else 0.0
    return Measure(f"{metric.label} {statistic}", pick, write, metric.higher_is_better, spread, tolerance, accuracy)


def _rate(name: str, key: str, higher_is_better: bool | None = True) -> Measure:
    def pick(level: Level) -> float | None:
        found: float | None = getattr(level.rates, key)
        return found

    return Measure(name, pick, plain, higher_is_better, lambda _: None)


def _part(name: str, pick: Pick, count: Callable[[Level], int], higher_is_better: bool) -> Measure:
    def spread(noise: Noise) -> Range | None:
        value = pick(noise.level)
        return None if value is None else noise.share(min(max(value, 0.0), 1.0), count(noise.level))

    return Measure(name, pick, share, higher_is_better, spread)


def _failed_share(level: Level) -> float | None:
    sent = level.requests.sent
    return (level.requests.failed + level.throttled) / sent if sent else None


MEASURES: Final = (
    _rate("Offered requests/s", "offered_per_s", None),
    _rate("Succeeded requests/s", "succeeded_per_s"),
    _rate("Output tokens/s", "output_tokens_per_s"),
    _part("Goodput", lambda level: level.goodput, lambda level: level.requests.in_window, higher_is_better=True),
    _part("Failed or 429", _failed_share, lambda level: level.requests.sent, higher_is_better=False),
    *(_metric("ttft", statistic) for statistic in ("mean", "p50", "p95", "p99")),
    *(_metric("ttft_from_schedule", statistic) for statistic in ("mean", "p50", "p99")),
    *(_metric("icl", statistic) for statistic in ("mean", "p50", "p99")),
    _metric("tpot", "mean"),
    *(_metric("e2e", statistic) for statistic in ("mean", "p50", "p99")),
    _metric("output_tokens_per_s_per_user", "mean"),
    _metric("input_tokens", "mean"),
    _metric("output_tokens", "mean"),
)

NOTES: Final = (
    "better, worse, changed: beyond noise. Judged by repeats (Welch's t on their figures, 99 %) where both have at "
    f"least {MIN_REPEATS}; else by the spread within one run and {share(ACCURACY)} at least, which leaves out what "
    "changes from run to run.",
    "not judged: bound by the client, cut short, unknown in one of them, or too little: too few requests or repeats to "
    "tell (a rate takes repeats).",
)


# ── Shown ────────────────────────────────────────────────────────────────────────────────────────────────────────

_STYLES: Final = {"better": "green", "worse": "bold red", "changed": "bold", "noise": "", "not judged": "dim"}


def render(comparison: Comparison) -> RenderableType:
    """For a terminal: differences first, then a table a level."""
    parts: list[RenderableType] = [Text(f"A  {for_line(comparison.a)}\nB  {for_line(comparison.b)}", style="bold")]
    if comparison.differences:
        parts.append(_text_table("Not the same in both", ("", "A", "B"), comparison.differences))
    for matched in comparison.levels:
        title = " · ".join(for_line(text) for text in (matched.label, *matched.notes))
        parts.append(_text_table(title, ("", "A", "B", "change", "", "by"), matched.rows, right=(1, 2, 3)))
    parts += [Text(note) for note in _unmatched(comparison)]
    return Group(*parts, *(Text(note, style="dim") for note in NOTES))


def _text_table(
    title: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()
) -> Table:
    made = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    made.pad_edge, made.collapse_padding = False, True
    for i, head in enumerate(heads):
        made.add_column(head, justify="right" if i in right else "left", no_wrap=i in right, overflow="fold")
    for row in rows:
        style = next((_STYLES[cell] for cell in row if cell in _STYLES), "") if right else ""
        made.add_row(*(Text(for_line(cell)) for cell in row), style=style)
    return made


def _unmatched(comparison: Comparison) -> Iterator[str]:
    for name, labels in (("A", comparison.only_a), ("B", comparison.only_b)):
        if labels:
            yield f"Only in {name}: {', '.join(for_line(label) for label in labels)}"
    if not comparison.levels:
        yield "No level is in both: nothing to compare."


def to_html(comparison: Comparison) -> str:
    """The same as a page of the report's look."""
    return page(f"{comparison.a} and {comparison.b}", join(_sections(comparison)))


def _sections(comparison: Comparison) -> Iterator[Markup]:
    yield element("h1", None, "Two load tests")
    yield facts((("A", comparison.a), ("B", comparison.b)))
    if comparison.differences:
        yield element("h2", None, "Not the same in both")
        rows = ((None, [Cell(cell, None, None) for cell in difference]) for difference in comparison.differences)
        yield table(("", "A", "B"), rows, sortable=False)
    for matched in comparison.levels:
        yield element("h2", None, matched.label)
        yield from (element("p", {"class": "warn"}, note) for note in matched.notes if not note.startswith("repeats"))
        yield table(("", "A", "B", "Change", "", "By"), ((None, _cells(row)) for row in matched.rows), sortable=False)
    for note in (*_unmatched(comparison), *NOTES):
        yield element("p", {"class": "note"}, note)


def _cells(row: Row) -> list[Cell]:
    verdict = Cell(row.judgement, None, f"n {row.judgement}")
    return [Cell(row.name), Cell(row.a), Cell(row.b), Cell(row.change), verdict, Cell(row.why)]
