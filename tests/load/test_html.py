from __future__ import annotations

import base64
import hashlib
import html as stdlib_html
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from runner.load import html, page, panels
from runner.load.chart import TICKS, Axis, Chart, Point, Series, figure, log_ticks, round_ticks, svg
from runner.load.markup import Markup, element, text
from tests.load import examples
from tests.load.test_results import ALL

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Every element with its attributes and texts, and whether all are closed in order."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.elements = []
        self.texts = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


@pytest.fixture(scope="module", params=list(ALL))
def report(request):
    return html.report(ALL[request.param]())


def test_the_report_is_well_formed(report):
    assert Page(report).all("main")


def test_the_report_needs_no_network_and_allows_none(report):
    page = Page(report)
    [policy] = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for _, attributes in page.elements:
        assert not {"src", "srcset", "action", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "data:,") == "data:,"
    for tag in ("style", "script"):
        [source] = re.findall(f"<{tag}>(.*?)</{tag}>", report, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "url(" not in source
        assert "@import" not in source


def test_hostile_names_are_shown_and_never_markup():
    source = html.report(examples.hostile())
    page = Page(source)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert "alert(1)" in "".join(page.texts)
    assert not set(source) & {"\x00", "\x1b", "\u202e"}
    assert "<script>alert" not in source
    for tag, attributes in page.elements:
        assert set(map(str.lower, attributes)) == set(attributes), tag


@pytest.mark.parametrize("seed", range(20))
def test_any_text_comes_back_from_markup_as_it_was(seed):
    rng = random.Random(seed)
    print("seed", seed)
    value = "".join(rng.choice("<>&\"'`=/ -!]xé\n→𝒳") for _ in range(60))
    page = Page(element("p", {"title": value}, value))
    assert "".join(page.texts) == value
    assert page.all("p")[0]["title"] == value
    assert stdlib_html.unescape(text(value)) == value
    assert text(Markup("<b>")) == "<b>"


def test_a_client_bound_level_is_marked_in_table_charts_and_text():
    page = Page(html.report(examples.open_loop()))
    assert len(page.all("tr", **{"class": "bound"})) == 1
    assert any("doubtful" in a.get("class", "") for a in page.all("circle"))
    assert "client-bound: measures the client" in "".join(page.texts)
    assert not any("doubtful" in a.get("class", "") for a in Page(html.report(examples.healthy())).all("circle"))


def test_no_headline_figure_is_taken_from_a_client_bound_level():
    result = examples.open_loop()
    best = max(level.rates.output_tokens_per_s or 0 for level in result.levels)
    assert best == result.levels[-1].rates.output_tokens_per_s
    cards = [big for big, _ in html._card_texts(result)]
    assert not any(f"{best:,.0f}" in card for card in cards)


def cells_of(source, heading):
    """The texts of a row's cells, of the first row with that heading."""
    row = re.search(rf'<tr><th scope="row">{heading}</th>(.*?)</tr>', source, re.DOTALL)
    assert row is not None
    return re.findall(r"<td[^>]*>([^<]*)</td>", row[1])


def test_a_level_has_every_metric_with_its_percentiles_and_none_that_n_does_not_support():
    level = examples.level(4)
    cells = cells_of(html.report(examples.result([level])), "TTFT")
    found = level["metrics"]["ttft"]
    assert (found["n"], found["p99"], found["p99_9"]) == (102, None, None)
    assert cells[0] == "102"
    assert [cell == "–" for cell in cells] == [False] * 7 + [True] * 2 + [False]


def test_one_level_alone_has_no_charts_of_a_single_dot():
    alone = html.report(examples.result([examples.level(4, repeat=i) for i in range(2)]))
    assert "Against load" not in alone
    assert "Distributions" in alone
    assert "Against load" in html.report(examples.healthy())


def test_repeats_are_shown_with_their_intervals():
    source = html.report(examples.repeated())
    assert "Over repeats" in source
    assert "710 ± 12" in source
    assert "120 ± 10" in source
    assert "Over repeats" not in html.report(examples.healthy())


def test_the_verdict_on_the_client_stands_beside_the_level_where_no_narrow_window_hides_it():
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', html.report(examples.open_loop()))
    assert heads[:2] == ["Level", "Client"]


def test_the_command_line_can_be_pasted():
    made = examples.result([examples.level(4)], argv=["load", "my jobs.jsonl", "--rate", "5"])
    assert "python -m runner load 'my jobs.jsonl' --rate 5" in "".join(Page(html.report(made)).texts)


def test_every_metric_is_defined_with_its_names_elsewhere(report):
    words = "".join(Page(report).texts)
    assert "Time to first token: from sending" in words
    assert "inter_chunk_latency" in words


@pytest.mark.parametrize("seed", range(30))
def test_ticks_are_round_within_the_range_and_neither_few_nor_many(seed):
    rng = random.Random(seed)
    print("seed", seed)
    low = rng.choice([0.0, rng.uniform(-5, 5) * 10 ** rng.randint(-4, 6)])
    high = low + 10 ** rng.uniform(-5, 7)
    ticks = round_ticks(low, high)
    step = 10 ** (math.log10(ticks[1] - ticks[0]) % 1)
    assert 2 <= len(ticks) <= TICKS + 1
    assert min(abs(step - factor) for factor in (1, 2, 5, 10)) < 1e-3
    assert min(ticks) >= low - 1e-6 * (high - low)
    assert max(ticks) <= high + 1e-6 * (high - low)
    top = 10 ** rng.uniform(-6, 6)
    bottom = top / 10 ** rng.uniform(1.3, 12)
    ticks = log_ticks(bottom, top)
    assert 2 <= len(ticks) <= TICKS + 1
    assert all(bottom <= tick <= top for tick in ticks)
    for tick in ticks:
        assert min(abs(10 ** (math.log10(tick) % 1) - factor) for factor in (1, 2, 3, 5, 10)) < 1e-6


def chart(*series, **changes):
    return Chart("a chart", Axis("x"), Axis("y"), series, **changes)


def coordinates(source):
    return [float(v) for path in re.findall(r' d="([^"]*)"', source) for v in re.findall(r"-?\d+\.?\d*", path)]


@pytest.mark.parametrize("kind", ["line", "curve", "step", "bars", "dots"])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "ys",
    [[1.0], [0.0], [0.0, 0.0], [1.0, None, 3.0], [1e-9, 1e9], [5.0, 5.0], [-1.0, 2.0]],
    ids=["one", "zero", "zeros", "gap", "wide", "flat", "below"],
)
def test_whatever_the_values_a_chart_stays_in_its_frame(kind, log, ys):
    made = Chart(
        "a chart",
        Axis("x", log=log),
        Axis("y", log=log),
        (Series("s", tuple(Point(float(i), y) for i, y in enumerate(ys)), kind),),
    )
    source = svg(made)
    Page(source)
    assert "nan" not in source
    assert "inf" not in source
    assert all(-1 <= value <= 461 for value in coordinates(source))


def test_a_gap_breaks_the_line():
    points = tuple(Point(float(i), y) for i, y in enumerate([1.0, 2.0, None, 3.0, 4.0]))
    [path] = re.findall(r'class="line c0" d="([^"]*)"', svg(chart(Series("s", points, "curve"))))
    assert path.count("M") == 2


def test_a_chart_without_a_point_says_so():
    assert "No data" in figure(chart(Series("s", (Point(1, None),))))
    assert "No data" in figure(chart())


def test_a_chart_names_every_series_a_single_one_too():
    one, two = Series("first", (Point(1, 1),)), Series("second", (Point(1, 2),), colour=1)
    assert figure(chart(one)).count("<li>") == 1
    assert "legend" not in figure(chart(Series("", (Point(1, 1),))))
    assert "second" in figure(chart(one, two))


def test_labels_of_ticks_do_not_touch():
    values = tuple(float(v) for v in range(1, 60))
    made = Chart("t", Axis("x", ticks=values), Axis("y"), (Series("s", tuple(Point(v, v) for v in values)),))
    page = Page(svg(made))
    places = sorted(float(a["x"]) for a in page.all("text") if a.get("text-anchor") == "middle" and "class" not in a)
    assert len(places) > 3
    assert min(b - a for a, b in pairwise(places)) > 13


def test_a_timeline_is_drawn_in_a_bounded_number_of_steps():
    long = examples.result([examples.level(4, seconds=600)])
    for made in panels.timeline(long.levels[0]):
        assert all(len(series.points) <= panels.MAX_STEPS + 1 for series in made.series)
    [_, tokens, *_] = panels.timeline(long.levels[0])
    total = sum(
        (b.x - a.x) * (a.y or 0) for a, b in zip(tokens.series[0].points, tokens.series[0].points[1:], strict=False)
    )
    assert total == pytest.approx(sum(tick.output_tokens for tick in long.levels[0].timeline))


def test_repeats_are_one_line_at_their_mean():
    made = panels.against_load(examples.repeated(), "closed")[0]
    [line, *_] = [series for series in made.series if series.name == "p50"]
    values = [level.metric("ttft").p50 or 0 for level in examples.repeated().levels if level.value == 4]
    assert line.points[0].y == pytest.approx(sum(values) / len(values))


def dumped(tmp_path, source):
    path = tmp_path / "report.html"
    path.write_text(source)
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return done.stdout, done.stderr


def test_the_rest_of_a_second_at_a_levels_end_is_no_peak():
    ticks = [{"t": float(t), "succeeded": 10, "output_tokens": 100} for t in range(4)]
    ticks.append({"t": 4.0, "succeeded": 1, "output_tokens": 10})
    level = examples.level(10, kind="open") | {"timeline": ticks, "duration_s": 4.01}
    _, tokens, requests, *_ = panels.timeline(examples.result([level]).levels[0])
    for chart, most in ((tokens, 110), (requests, 11)):
        assert max(point.y or 0 for series in chart.series for point in series.points) <= most
        assert max(point.x for series in chart.series for point in series.points) == pytest.approx(4.01)


def test_what_a_search_found_is_said_in_words():
    result = examples.open_loop()
    assert result.search is not None
    said = result.search.model_copy(update={"reason": "8 kept the SLO for 0.99 of the requests; 11 did not"})
    assert "<p>8 kept the SLO for 0.99" in html.report(result.model_copy(update={"search": said}))


def test_the_values_of_a_search_are_named_as_its_levels_are():
    result = examples.open_loop()
    assert result.search is not None
    tried = result.search.tried[0].model_copy(update={"value": 18.75})
    source = html.report(
        result.model_copy(update={"search": result.search.model_copy(update={"best": 18.75, "tried": (tried,)})})
    )
    about = source[source.index("Search for the highest load") :]
    assert 'data-v="18.75">18.75<' in about


def test_no_card_praises_a_test_without_an_answer():
    level = examples.level(4)
    level["rates"]["output_tokens_per_s"] = 0.0
    assert "most output tokens" not in html.report(examples.result([level]))
    assert "most output tokens" in html.report(examples.result([examples.level(4)]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no headless browser here")
@pytest.mark.parametrize("name", ["open_loop", "hostile"])
def test_a_real_browser_runs_the_script_and_has_nothing_to_complain_of(name, tmp_path):
    dom, log = dumped(tmp_path, html.report(ALL[name]()))
    assert 'data-ready="yes"' in dom
    assert '<th scope="col"><button>' in dom
    assert dom.count("<script>") == 1
    assert "CONSOLE" not in log, log
    assert "Refused" not in log


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no headless browser here")
def test_a_real_browser_refuses_whatever_is_not_ours(tmp_path):
    source = html.report(examples.healthy()).replace("</main>", "</main><script>document.title = 'in'</script>")
    dom, log = dumped(tmp_path, source)
    assert "<title>in</title>" not in dom
    assert "Content Security Policy" in log


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no headless browser here")
def test_a_click_on_a_heading_sorts_and_a_point_tells_what_it_is(monkeypatch, tmp_path):
    clicks = """
      const heads = [...document.querySelectorAll("table.sortable th button")];
      const offered = heads.find((head) => head.textContent.startsWith("Offered"));
      offered.click(); offered.click();
      const dot = document.querySelector("circle.hit");
      dot.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 5, clientY: 5}));
    """
    original = page._resource
    monkeypatch.setattr(page, "_resource", lambda n: Markup(original(n) + (clicks if n.endswith("js") else "")))
    dom, log = dumped(tmp_path, html.report(examples.open_loop()))
    assert "CONSOLE" not in log
    body = dom[dom.index("<tbody>") : dom.index("</tbody>")]
    assert re.findall(r'<th scope="row"[^>]*>([^<]*)<', body) == ["20/s", "11/s", "8/s", "5/s", "2/s"]
    assert 'aria-sort="descending"' in dom
    assert re.search(r'<div id="tip"[^>]*>2/s: p50 \d+ ms</div>', dom)
