"""The comparison page as a reader has it: real tiny runs, in a real browser."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns.tiny_runs import make_corpus, write_recipe
from devtools import Browser, browser, needs_browser
from run_parts import ENVIRONMENT, LAUNCH, train

from etude.pretrain.report import render
from etude.pretrain.report_run import read_run
from etude.probes.run import run_probe

pytestmark = needs_browser


def command(name: str, *words: object) -> None:
    line = [sys.executable, str(LAUNCH / name), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with labels and CQT, with probes, and a shorter one with a teacher."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(folder, clip_seconds=2.0, held_out=0.3)
    mert = write_recipe(folder, "mert", corpus, dropout=0.0)
    values = yaml.safe_load(mert.read_text())
    values["objective"]["targets"]["logmel"] = {"kind": "kmeans", "final_dim": 8}
    values["data"]["workers"] = 0
    mert.write_text(yaml.safe_dump(values))
    words = ("--features", "logmel", "--bins", "20", "--n-fft", "1024", "--clusters", "6")
    command("cluster.py", corpus, "--config", mert, *words)
    teacher = write_recipe(folder, "music2vec", corpus, dropout=0.0)
    runs = [folder / name for name in ("labels", "teacher")]
    for recipe, run, steps in zip((mert, teacher), runs, (18, 6), strict=True):
        done = train(recipe, f"run.dir={run}", f"train.max_steps={steps}", "health.every_steps=6")
        assert done.returncode == 0, done.stderr
    run_probe([runs[0]], out=runs[0] / "probe", tasks=["pitch"], tracks=54, seconds=5.0, seed=0)
    out = folder / "page.html"
    command("compare.py", *runs, "--out", out)
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(chromium: Browser, page: Path) -> Iterator[Browser]:
    chromium.problems.clear()
    chromium.open(page)
    yield chromium
    assert chromium.problems == []


def chart(title: str) -> str:
    """A selector of the drawing of this title."""
    return f'svg.live[aria-label^="{title};"]'


def inside(browser: Browser, title: str, selector: str) -> int:
    found = f"document.querySelectorAll({json.dumps(chart(title) + ' ' + selector)}).length"
    return int(browser.ask(found))


def texts(browser: Browser, title: str) -> list[str]:
    found = json.dumps(chart(title) + " text")
    words = browser.ask(f"[...document.querySelectorAll({found})].map(t => t.textContent)")
    return [str(word) for word in words]


def drawn(browser: Browser) -> Any:
    """For each chart: its title, and for each of its curves run, label, points and lines."""
    return browser.ask(
        """[...document.querySelectorAll('figure[data-chart]')].map(f => ({
          title: f.querySelector('h3').textContent,
          seen: f.querySelector('svg.live').getBoundingClientRect().height,
          curves: [...f.querySelectorAll('g.curve')].map(g => ({
            run: Number(g.dataset.run), label: g.dataset.label,
            line: g.querySelector('.line').getAttribute('d')}))}))"""
    )


def column(browser: Browser, table: int, number: int) -> list[str]:
    rows = f"document.querySelectorAll('table')[{table}].tBodies[0].rows"
    words = browser.ask(f"[...{rows}].map(r => r.cells[{number}].textContent)")
    return [str(word) for word in words]


def test_every_curve_and_every_table_is_shown(opened: Browser, page: Path) -> None:
    data = opened.ask("JSON.parse(document.getElementById('data').textContent)")
    charts = drawn(opened)
    titles = [chart["title"] for chart in charts]
    for title in (
        *("logmel: cross-entropy", "logmel: accuracy", "cqt: error", "teacher: error"),
        *("Total loss", "Learning rate", "teacher/target_std", "health/conv/rank", "Probe: pitch"),
    ):
        assert title in titles
    assert len(charts) == len(data["charts"])
    assert opened.ask("document.querySelectorAll('figure > svg:not(.live)').length") == 0
    for made, given in zip(charts, data["charts"], strict=True):
        assert made["seen"] > 100 and len(made["curves"]) == len(given["curves"]) > 0
        expected = sorted((c["run"], c["label"], len(c["y"])) for c in given["curves"])
        for curve, (run, label, points) in zip(
            sorted(made["curves"], key=lambda c: (c["run"], c["label"], c["line"].count("L"))),
            expected,
            strict=True,
        ):
            assert (curve["run"], curve["label"]) == (run, label)
            assert 1 + curve["line"].count("L") == points or points == 1
            assert "NaN" not in curve["line"] and "Infinity" not in curve["line"]
    rows = opened.ask(
        "[...document.querySelectorAll('body > .wide table, section table')].map(t => "
        "[t.getBoundingClientRect().height > 20, t.tBodies[0].rows.length])"
    )
    assert len(rows) == 6 and all(seen and count for seen, count in rows)
    # The input of the first layer and two layers, each with its interval.
    assert inside(opened, "Probe: pitch", ".interval") == 3
    results = json.loads((page.parent / "labels" / "probe" / "results.json").read_text())
    assert inside(opened, "Probe: pitch", "g.curve") == len(results["models"]) + 1  # and chance


def test_the_axis_is_switched_for_all_charts(opened: Browser) -> None:
    assert "update" in texts(opened, "Total loss")
    before = drawn(opened)
    opened.click("input[value=hours]")
    assert "audio heard (hours)" in texts(opened, "Total loss")
    opened.click("input[value=seconds]")
    words = texts(opened, "Total loss")
    assert any(word.startswith("wall-clock (") for word in words)
    assert [len(chart["curves"]) for chart in drawn(opened)] == [len(c["curves"]) for c in before]
    assert "layer (0: input of the first)" in texts(opened, "Probe: pitch")
    opened.click("input[value=updates]")
    assert drawn(opened) == before


def test_a_chart_is_zoomed_by_dragging_and_by_keys_and_reset(opened: Browser) -> None:
    selector, before = chart("Total loss"), drawn(opened)
    left, top, width, height = opened.box(selector)
    where = [left + width * share for share in (0.3, 0.5, 0.6)]
    opened.mouse("mousePressed", where[0], top + height / 2)
    for x in where[1:]:
        opened.mouse("mouseMoved", x, top + height / 2)
    opened.mouse("mouseReleased", where[-1], top + height / 2)
    zoomed = drawn(opened)
    different = [a["title"] for a, b in zip(before, zoomed, strict=True) if a != b]
    assert different == ["Total loss"]  # each chart has a range of its own
    # 6 to 11 of 18 updates, about.
    numbers = [
        float(word) for word in texts(opened, "Total loss") if word.replace(".", "").isdigit()
    ]
    assert 5 < numbers[0] < 8 and "18" not in texts(opened, "Total loss")
    opened.click(selector, times=2)
    assert drawn(opened) == before

    opened.ask(f"document.querySelector({json.dumps(selector)}).focus()")
    opened.press("+", "Equal")
    assert drawn(opened) != before
    opened.press("ArrowRight", "ArrowRight")
    for _ in range(60):
        opened.press("+", "Equal")
    opened.press("0", "Digit0")
    assert drawn(opened) == before
    opened.mouse("mouseMoved", where[1], top + height / 2, down=False)
    reading = opened.ask(f"document.querySelector({json.dumps(selector)}).nextSibling.textContent")
    assert reading.startswith("labels, train: ") and "teacher, held out: " in reading


def test_runs_are_toggled_and_curves_smoothed(opened: Browser) -> None:
    before = drawn(opened)
    opened.click(".legend input[value='0']")
    left = {curve["run"] for chart in drawn(opened) for curve in chart["curves"]}
    assert left == {1}
    opened.click(".legend input[value='1']")
    assert not any(chart["curves"] for chart in drawn(opened))
    assert any("nothing to draw" in word for word in texts(opened, "Total loss"))
    for run in (0, 1):
        opened.click(f".legend input[value='{run}']")
    assert drawn(opened) == before

    opened.ask("document.getElementById('smoothing').focus()")
    for _ in range(40):
        opened.press("ArrowRight", "ArrowRight")
    assert opened.ask("document.getElementById('smoothed').textContent") == "0.8"
    assert inside(opened, "Total loss", "g.train path.raw") == 2
    for chart, old in zip(drawn(opened), before, strict=True):
        for curve, was in zip(chart["curves"], old["curves"], strict=True):
            if curve["label"] != "train":
                assert curve == was  # held-out values and baselines stay as they are
            elif "L" in was["line"]:
                assert curve["line"].count("L") == was["line"].count("L")


def test_tables_are_sorted_by_their_headings(opened: Browser) -> None:
    assert column(opened, 0, 1) == ["18", "6"]
    opened.click("th:nth-child(2) button")
    assert column(opened, 0, 1) == ["6", "18"]  # as numbers: "18" comes before "6"
    assert column(opened, 0, 0) == ["teacher", "labels"]
    opened.ask("document.querySelector('th:nth-child(2) button').focus()")
    opened.press(" ", "Space")
    assert column(opened, 0, 1) == ["18", "6"]
    assert opened.ask("document.querySelector('th:nth-child(2)').ariaSort") == "descending"
    opened.click("th:nth-child(1) button")
    assert column(opened, 0, 0) == ["labels", "teacher"]
    opened.click("th:nth-child(1) button")
    assert column(opened, 0, 0) == ["teacher", "labels"]


def test_without_scripts_the_page_is_whole(chromium: Browser, page: Path) -> None:
    chromium.problems.clear()
    chromium.open(page, scripts=False)
    figures = chromium.ask(
        "[...document.querySelectorAll('figure > svg')].map(s => s.getBoundingClientRect().height)"
    )
    text = page.read_text()
    assert len(figures) == text.count("<figure") > 20 and min(figures) > 100
    for selector, shown in ((".switches", "none"), (".legend input", "none"), (".legend", "block")):
        style = f"getComputedStyle(document.querySelector('{selector}')).display"
        assert chromium.ask(style) == shown
    assert chromium.problems == []


def test_on_paper_it_is_light_and_has_no_controls(opened: Browser) -> None:
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    background = "getComputedStyle(document.body).backgroundColor"
    opened.call("Emulation.setEmulatedMedia", media="screen", features=dark)
    assert opened.ask(background) == "rgb(22, 24, 27)"
    opened.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert opened.ask(background) == "rgb(255, 255, 255)"
    assert opened.ask("getComputedStyle(document.querySelector('.switches')).display") == "none"
    assert opened.ask("getComputedStyle(document.querySelector('.legend')).display") == "block"
    assert all(chart["seen"] > 50 for chart in drawn(opened))
    opened.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_name_cannot_end_the_script(chromium: Browser, page: Path, tmp_path: Path) -> None:
    evil = "</script><script>document.title = 'owned'</script><!-- <script>"
    run = read_run(page.parent / "teacher")
    records = tuple({**r, f"{evil}/loss": 1.0 + r["step"]} for r in run.metrics.records)
    metrics = replace(run.metrics, records=records)
    hostile = replace(run, name=evil, metrics=metrics, config_text=evil, config={"a": {evil: evil}})
    (tmp_path / "page.html").write_text(render([hostile, run], [(evil, _probe())], title=evil))
    chromium.problems.clear()
    chromium.open(tmp_path / "page.html")
    assert chromium.ask("document.title") == evil
    assert chromium.ask("document.querySelectorAll('script').length") == 2
    assert inside(chromium, "Total loss", "g.curve") == 4
    assert chromium.ask("document.querySelector('.legend label').textContent") == evil
    assert f"{evil}: error" in [chart["title"] for chart in drawn(chromium)]
    assert chromium.problems == []


def _probe() -> Any:
    from etude.pretrain.report_probe import ProbeReport

    return ProbeReport(Path("<b>"), (("</table>", "<script>"), ("<i>", "</script>")))


def test_runs_of_any_length_and_holes_are_drawn(chromium: Browser, tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / f"run {number}"
        folder.mkdir()
        count = 100_000 if number == 0 else 1 + 7 * (number - 1)
        lines: list[dict[str, float | None]] = [
            {"step": s + 1, "loss": 2 + math.sin(s), "optim/grad_norm": 0.1} for s in range(count)
        ]
        for hole in range(1, count, 2):
            if number == 3:
                lines[hole]["loss"] = None  # every second one: no two points are neighbours
        if number == 4:
            lines = [{**line, "loss": None} for line in lines]
        if number > 10:
            lines = [
                {**line, "x/loss": 1e30 * 10**n, "audio_hours": n + 1}
                for n, line in enumerate(lines)
            ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    runs = [read_run(tmp_path / f"run {number}") for number in range(20)]
    text = render(runs, [])
    assert len(text) < 2_000_000
    (tmp_path / "page.html").write_text(text)
    chromium.problems.clear()
    chromium.open(tmp_path / "page.html")
    charts = {chart["title"]: chart["curves"] for chart in drawn(chromium)}
    loss = {curve["run"]: curve["line"] for curve in charts["Total loss"]}
    assert len(loss) == 20 and not any("NaN" in line for line in loss.values())
    assert loss[0].count("L") == 299 and loss[1].count("M") == 1 and "h0" in loss[1]
    assert (loss[3].count("M"), loss[3].count("h0"), loss[3].count("L")) == (8, 8, 0)
    assert loss[4] == ""
    colours = chromium.ask(
        "new Set([...document.querySelectorAll('.legend i')].map(i => i.style.background)).size"
    )
    assert colours == 20
    assert "of up to 100,000 values of a curve, the mean of each of 300 equal parts" in text
    chromium.ask("document.getElementById('smoothing').focus()")
    chromium.press("ArrowRight", "ArrowRight")  # means of equal values are equal but for rounding
    assert len(texts(chromium, "Gradient norm")) < 20
    chromium.click("button[data-all=off]")
    assert not any(chart["curves"] for chart in drawn(chromium))
    chromium.click("button[data-all=on]")
    chromium.click("input[value=hours]")
    charts = {chart["title"]: chart["curves"] for chart in drawn(chromium)}
    assert len(charts["Total loss"]) == 9  # the others logged no hours, and the page says so
    assert "Not on the axis of audio hours, for want of its log: run 0, run 1, " in text
    assert chromium.problems == []
