"""The pages about runs: what they show is what was recorded, and nothing in them can act."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from zipfile import ZipFile

import pytest

import isentrope
from isentrope.reporting import _charts, _configs, _figures, _series
from isentrope.reporting._episodes import EpisodeFile
from isentrope.reporting._history import History
from isentrope.reporting._scale import SignedLog
from isentrope.reporting._text import label, number, percent, visible

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\x00\x1b[31m\u202egnp\ud800"
    "{{ 7 * 7 }} שלום"
)
CONFIG = """
iterations = 60
seed = 7
[env]
id = "arithmetic"
[model]
id = "tiny-qwen3"
[engine]
id = "transformers"
[rollout]
tasks = 4
group = 8
[algorithm]
epochs = 1
aggregation = "token-mean"
{parts}
[algorithm.advantage]
id = "group-normalized"
[algorithm.objective]
id = "clipped"
eps_low = 0.2
eps_high = 0.2
"""
PLAIN = "transforms = []\ncontrollers = []"
REPO = 'controllers = []\n[[algorithm.transforms]]\nid = "repo-r"\nzeta = 0.01'


class Page(HTMLParser):
    """A page as its tags, scripts, visible text and tables."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = defaultdict(list)
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._table = ""
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._open.append((tag, found))
        if tag == "script":
            self.scripts.append((found, ""))
        elif tag == "table":
            self._table = found.get("id") or f"table {len(self.tables)}"
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if inside and inside[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif "style" not in inside:
            self.words.append(data)
            if "td" in inside or "th" in inside:
                self.tables[self._table][-1][-1] += data

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Every figure, by the title of its chart."""
        data = {a["id"]: text for a, text in self.scripts if (a.get("id") or "").startswith("fig")}
        labelled = [a for tag, a in self.tags if tag == "div" and a.get("role") == "img"]
        return {
            str(a["aria-label"]).split(",")[0]: json.loads(data[a["data-figure"]]) for a in labelled
        }


def iteration(i: int, **more: Any) -> dict[str, Any]:
    return {
        "iteration": i,
        "reward": i / 100,
        "success": i / 200,
        "entropy": 1.0 - i / 100,
        "entropy_target": None,
        "objective.eps_high": 0.2,
        "stopped": None,
        **more,
    }


def episode(i: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "iteration": i,
        "task": f"task-{i}",
        "rollout": 0,
        "reward": 0.5,
        "success": False,
        "status": "ok",
        "stop_reason": "terminated",
        "tokens": 3,
        "messages": [{"role": "user", "content": "hello"}],
        "error": None,
        **more,
    }


def write_run(
    path: Path,
    metrics: Iterable[Mapping[str, Any]] = (),
    episodes: Iterable[Mapping[str, Any]] = (),
    parts: str = PLAIN,
) -> Path:
    path.mkdir(parents=True)
    (path / "config.toml").write_text(CONFIG.format(parts=parts), encoding="utf-8")
    about = {"format": 1, "python": "3.11", "packages": {"torch": "2.11"}}
    (path / "run.json").write_text(json.dumps(about))
    for name, records in (("metrics", metrics), ("episodes", episodes)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (path / f"{name}.jsonl").write_text(lines)
    return path


def page_of(path: Path) -> Page:
    return Page(isentrope.report(path))


def drawn(figure: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the line (not the faint points) of one name."""
    return [t for t in figure["data"] if t["name"] == name and "opacity" not in t][-1]


# ---------------------------------------------------------------- a real run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of 60 iterations whose numbers are known."""
    run = tmp_path_factory.mktemp("known") / "run"
    write_run(run, [iteration(i) for i in range(60)], [episode(i) for i in range(60)])
    return page_of(run)


def test_the_page_of_a_real_run_shows_the_numbers_of_its_metrics(tiny_run) -> None:
    run = isentrope.train(**tiny_run)
    made = isentrope.report(run)
    assert run.path / "report.html" == made
    shown = Page(made)
    assert [m["entropy"] for m in run.metrics] == pytest.approx(
        drawn(shown.figures["Entropy"], "entropy")["y"], rel=1e-4
    )
    assert {"Entropy", "Reward and success", "Engine against learner", "Time"} <= set(shown.figures)
    rows = {row[0]: row[1:] for row in shown.tables["ends"]}
    first, last = run.metrics[0]["entropy"], run.metrics[-1]["entropy"]
    expected = [number(first), number(last), percent(100 * (last - first) / first)]
    assert expected == rows["Entropy, nats per token"]
    assert "3 of 3 iterations: finished" in shown.text
    assert all(word in shown.text for word in ("arithmetic", "tiny-qwen3", "group-normalized"))


def test_first_and_last_are_means_of_ten_iterations(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables["ends"]}
    assert ["first 10", "last 10", "change"] == rows["Mean over iterations"]
    assert ["0.0450", "0.545", "+1,111 %"] == rows["Reward"]
    assert ["0.955", "0.455", "\u221252 %"] == rows["Entropy, nats per token"]
    assert "Entropy fell by 52 %, from 0.955 to 0.455 nats per token; it had no target." in (
        page.text
    )


def test_entropy_comes_first_and_has_its_unit(page: Page) -> None:
    assert "Entropy" == next(iter(page.figures))
    title = page.figures["Entropy"]["layout"]["yaxis"]["title"]["text"]
    assert "entropy (nats per token)" == title


def test_what_was_never_measured_has_no_chart(page: Page) -> None:
    assert {"Entropy", "Reward and success"} == set(page.figures)


def test_every_figure_is_one_that_plotly_accepts(tmp_path: Path) -> None:
    from plotly.graph_objects import Figure

    full = [
        iteration(
            i, entropy_target=1.0, grad_norm=1.0, mismatch_mean=1e-6, groups_zero=i % 3,
            tokens_per_episode=9, turns_per_episode=1,
            **{"objective/clip_high": 0.1, "objective/clip_low": 0.2},
            **{"repo_r.zeta": (-2.0) ** (i % 6), "stop/terminated": 3, "seconds/learn": 0.1,
               "env/parts": 0.3, "eval/success": 0.5, "eval/pass@1": 0.4},
        )
        for i in range(40)
    ]  # fmt: skip
    run = write_run(tmp_path / "a", full)
    both = isentrope.compare(
        run, shutil.copytree(run, tmp_path / "again"), out=tmp_path / "compare.html"
    )
    alone = page_of(run).figures
    assert 13 == len(alone)
    for figure in [*alone.values(), *Page(both).figures.values()]:
        Figure(figure)  # raises for a key or a value that plotly does not know


# ---------------------------------------------------------------- series, by hand


def test_a_short_run_has_no_ticks_between_iterations() -> None:
    def ticks(count: int) -> object:
        line = _figures.Line("x", range(count), [0.0] * count)
        return _figures.lines([line], _figures.Axis("y"))["layout"]["xaxis"].get("dtick")

    assert [1, 1, None] == [ticks(4), ticks(11), ticks(12)]


def test_a_moving_average_is_centred_and_narrower_at_the_ends() -> None:
    assert [1.5, 2.0, 3.0, 3.5] == _series.smooth([1.0, 2.0, 3.0, 4.0], 3)


def test_a_moving_average_keeps_gaps_and_does_not_count_them() -> None:
    assert [1.0, None, 5.0, 5.0] == _series.smooth([1.0, None, 4.0, 6.0], 3)


def test_thinning_keeps_peaks_troughs_and_gaps() -> None:
    values: list[float | None] = [0.0] * 10_000
    values[1234], values[7777], values[5000] = 9.0, -9.0, None
    chosen = _series.thin(values, 300)
    assert {1234, 7777, 5000} <= set(chosen)
    assert len(chosen) <= 300
    assert sorted(chosen) == chosen


def test_stacked_series_are_thinned_to_means_at_shared_places() -> None:
    assert [0.5, 2.5] == _series.thin_means([0.0, 1.0, 2.0, 3.0], 2)
    assert [0, 2] == _series.thin_places([0, 1, 2, 3], 2)


def test_a_signed_logarithm_is_symmetric_and_passes_zero() -> None:
    scale = SignedLog.fitting([-0.5, None, 0.01, 0.0])
    assert SignedLog(0.01) == scale
    assert [0.0, 1.0, 2.0, -2.0, 0.5] == [scale.place(v) for v in (0, 0.01, 0.1, -0.1, 0.005)]
    places, texts = scale.ticks([-0.5, 0.01])
    assert ["-1", "-0.1", "-0.01", "0", "0.01", "0.1", "1"] == texts
    assert sorted(places) == places


def test_a_knob_of_one_magnitude_keeps_a_linear_axis() -> None:
    assert SignedLog.fitting([0.1, 0.2, 0.0, None]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.250"), (12, "12"), (1234.5, "1,234"), (3e-7, "3.00e-07"), (252.7, "253"),
     (None, "\u2013"), (math.nan, "\u2013")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text) -> None:
    assert text == number(value)


def test_a_knob_is_drawn_where_it_moves_as_exact_steps(tmp_path: Path) -> None:
    zeta = [0.01, -0.01, 0.02, 0.5]
    run = write_run(
        tmp_path / "r", [iteration(i, **{"repo_r.zeta": z}) for i, z in enumerate(zeta)]
    )
    figures = page_of(run).figures
    assert "Knob objective.eps_high" not in figures
    (trace,) = figures["Knob repo_r.zeta"]["data"]
    assert (zeta, "hv") == (trace["customdata"], trace["line"]["shape"])


def test_an_evaluation_stands_only_where_one_was_made(tmp_path: Path) -> None:
    def more(i: int) -> dict[str, float]:
        return {"eval/success": i / 10, "eval/pass@1": i / 10, "eval/pass@4": 0.9} if i % 2 else {}

    run = write_run(tmp_path / "r", [iteration(i, **more(i)) for i in range(6)])
    figure = page_of(run).figures["Evaluations"]
    trace = drawn(figure, "success = pass@1")
    assert ([1, 3, 5], [0.1, 0.3, 0.5]) == (trace["x"], trace["y"])
    assert [0.9, 0.9, 0.9] == drawn(figure, "pass@4")["y"]


def test_failures_are_drawn_by_status_where_there_were_any(tmp_path: Path) -> None:
    def counts(i: int, timeouts: int) -> dict[str, int]:
        return {"status/ok": 8 - timeouts, "status/timeout": timeouts, "status/crashed": 0}

    fine = write_run(tmp_path / "fine", [iteration(i, **counts(i, 0)) for i in range(3)])
    assert "Failures" not in page_of(fine).figures
    bad = write_run(tmp_path / "bad", [iteration(i, **counts(i, i)) for i in range(3)])
    (trace,) = page_of(bad).figures["Failures"]["data"]
    assert ("timeout", [0, 1, 2]) == (trace["name"], trace["y"])


def test_a_null_is_a_gap(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r",
        [iteration(0, grad_norm=1.0), iteration(1, grad_norm=None), iteration(2, grad_norm=3.0)],
    )
    (trace,) = page_of(run).figures["Gradient norm"]["data"]
    assert ([1.0, None, 3.0], False) == (trace["y"], trace["connectgaps"])


def test_a_number_that_is_none_is_a_gap_too(tmp_path: Path) -> None:
    broken = [
        iteration(0),
        iteration(1, entropy=math.nan, reward="high"),
        iteration(2, entropy=True),
    ]
    figures = page_of(write_run(tmp_path / "r", broken)).figures
    assert [1.0, None, None] == drawn(figures["Entropy"], "entropy")["y"]


def test_the_target_is_dashed_and_in_words(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r", [iteration(i, entropy=0.99, entropy_target=1.0) for i in range(20)]
    )
    shown = page_of(run)
    target = drawn(shown.figures["Entropy"], "target")
    assert ("dash", [1.0] * 20) == (target["line"]["dash"], target["y"])
    assert "1.0 % below its target of 1, and at most 1.0 % away from it" in shown.text


def test_series_that_are_equal_are_drawn_once_under_both_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [iteration(i, reward=0.5, success=0.5) for i in range(3)])
    (trace,) = page_of(run).figures["Reward and success"]["data"]
    assert "reward = success" == trace["name"]


@pytest.mark.parametrize(("count", "averaged"), [(9, False), (30, True)])
def test_averages_are_spoken_of_where_there_are_any(tmp_path, count: int, averaged: bool) -> None:
    shown = page_of(write_run(tmp_path / "r", [iteration(i) for i in range(count)]))
    assert averaged == ("Lines are moving averages" in shown.text)
    assert (4 if averaged else 2) == len(shown.figures["Reward and success"]["data"])


def test_a_success_that_one_run_lacks_is_unknown_and_that_all_lack_is_left_out(tmp_path) -> None:
    mute = {"success": 0.0, "episodes_unjudged": 4, "stop/terminated": 4}
    judged, *others = (
        write_run(tmp_path / name, [iteration(i, **more) for i in range(4)])
        for name, more in (("a", {}), ("b", mute), ("c", mute))
    )
    shown = Page(isentrope.compare(judged, others[0], out=tmp_path / "d.html"))
    assert ["\u2013 \u2192 \u2013", "\u2013"] == shown.tables["runs"][2][3:5]
    assert ["a"] == [trace["name"] for trace in shown.figures["Success"]["data"]]
    shown = Page(isentrope.compare(*others, out=tmp_path / "d.html"))
    assert 5 == len(shown.tables["runs"][0])  # the run, and two of what there is
    assert "Success" not in shown.figures


def test_an_iteration_without_a_win_counts_where_only_a_win_is_said(tmp_path) -> None:
    won = [i == 3 for i in range(4)]
    metrics = [
        iteration(i, **{"success": win / 4, "episodes_unjudged": 4 - win, "stop/terminated": 4})
        for i, win in enumerate(won)
    ]
    shown = page_of(write_run(tmp_path / "r", metrics))
    (row,) = (row for row in shown.tables["ends"] if row[0] == "Success")
    assert ["0", "0.125"] == row[1:3]


# ---------------------------------------------------------------- runs that did not finish


def test_a_run_without_metrics_has_a_page_that_says_so(tmp_path: Path) -> None:
    shown = page_of(write_run(tmp_path / "r"))
    assert "0 of 60 iterations: no metrics yet" in shown.text
    assert {} == shown.figures
    assert len(shown.source) < 50_000  # and no script for charts that there are not


def test_an_unfinished_run_says_how_far_it_came(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [iteration(0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 1, "rew')  # a kill cut it short
    assert "1 of 60 iterations: unfinished" in page_of(run).text


def test_a_run_that_stopped_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [iteration(0, stopped="Nothing to learn.")])
    assert "1 of 60 iterations. Stopped: Nothing to learn." in page_of(run).text


def test_a_run_of_a_plugin_that_is_not_installed_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [iteration(0)])
    config = (run / "config.toml").read_text().replace('"clipped"', '"acme/unknown"')
    (run / "config.toml").write_text(config)
    assert "acme/unknown" in page_of(run).text


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    def more(i: int) -> dict[str, float]:
        names = ("grad_norm", "objective/clip_high", "mismatch_mean", "groups_zero", "env/part")
        return dict.fromkeys(names, i * 7919 % 1000 / 997) | {
            "repo_r.zeta": math.sin(i), "seconds/learn": 1 + math.cos(i), "stop/terminated": i % 9
        }  # fmt: skip

    run = write_run(tmp_path / "r", [iteration(i, **more(i)) for i in range(10_000)])
    shown = page_of(run)
    (plotly,) = (text for _, text in shown.scripts if len(text) > 1_000_000)
    assert len(shown.source) - len(plotly) < 700_000
    points = [len(t["x"]) for f in shown.figures.values() for t in f["data"]]
    assert max(points) <= _series.POINTS
    assert 9999 in drawn(shown.figures["Entropy"], "entropy")["x"]


# ---------------------------------------------------------------- episodes and failures


def test_failures_are_counted_by_kind_with_the_first_traceback(tmp_path: Path) -> None:
    def failed(error: str) -> dict[str, Any]:
        return episode(0, status="env_error", error=f"Traceback\n  File x\n{error}")

    episodes = [failed("KeyError: 'a'"), failed("KeyError: 'b'"), failed("ValueError: c")]
    run = write_run(tmp_path / "r", [iteration(0)], [*episodes, episode(0)])
    text = page_of(run).text
    assert "4 episodes, 3 of them failed" in text
    assert "env error: KeyError \u00d7 2" in text
    assert "env error: ValueError \u00d7 1" in text
    assert ("KeyError: 'a'" in text, "KeyError: 'b'" in text) == (True, False)


def test_a_page_has_as_many_iterations_as_fit_spread_evenly_and_the_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (), [episode(i) for i in range(9)])
    file = EpisodeFile(isentrope.Run(run))
    file.update()
    whole = file.embedded()
    assert {"index", *map(str, range(9))} == whole.keys()
    room = sum(len(whole[name]) for name in "8042")
    assert ["index", "8", "0", "4", "2"] == list(file.embedded(room))
    assert ["index", "8"] == list(file.embedded(0))


def test_episodes_are_read_as_far_as_they_are_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (), [episode(0), episode(0), episode(1)])
    file = EpisodeFile(isentrope.Run(run))
    with (run / "episodes.jsonl").open("a") as lines:
        file.update()
        assert (3, [0, 1]) == (file.total, list(file.spans))
        half = json.dumps(episode(2)) + "\n"
        lines.write(half[:20])
        lines.flush()
        file.update()
        assert 3 == file.total
        lines.write(half[20:])
        lines.flush()
        file.update()
    assert ([0, 0, 1, 2], [0, 0, 1, 2]) == (
        file.columns["iteration"],
        file.columns["task"],  # the different names, numbered
    )
    isentrope.Run(run).rewind(1)  # as a resumed run does
    file.update()
    assert (2, [0]) == (file.total, list(file.spans))


# ---------------------------------------------------------------- hostile text, and the network


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run in which every text that others write is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    bad = episode(
        0,
        task=HOSTILE,
        stop_reason=HOSTILE,
        tokens=HOSTILE,
        messages=[{"role": HOSTILE, "content": HOSTILE}, HOSTILE],
    )
    run = write_run(
        folder / "<img src=x onerror=alert(3)>",
        [iteration(i, stopped=HOSTILE, **{f"env/{HOSTILE}": 1.0 * i}) for i in range(3)],
        [bad, {**bad, "status": HOSTILE, "error": HOSTILE}],
    )
    config = (run / "config.toml").read_text()
    written = json.dumps(HOSTILE.replace("\ud800", "").replace("\x00", ""))
    (run / "config.toml").write_text(config.replace('"arithmetic"', written), encoding="utf-8")
    return page_of(run)


def test_hostile_text_makes_no_elements_and_no_scripts(hostile: Page, page: Page) -> None:
    handlers = [name for _, attrs in hostile.tags for name in attrs if name.startswith("on")]
    assert [] == handlers
    failures = {"pre", "article"}
    assert {tag for tag, _ in page.tags} >= {tag for tag, _ in hostile.tags} - failures
    ours = {text for attrs, text in page.scripts if "type" not in attrs}
    assert ours == {text for attrs, text in hostile.scripts if "type" not in attrs}
    assert "<script>alert(1)</script>" in hostile.text  # it is shown, as the text that it is
    assert "{{ 7 * 7 }}" in hostile.text


def test_what_cannot_be_seen_is_shown_by_name(hostile: Page) -> None:
    for character in ("\x00", "\x1b", "\u202e"):
        assert character not in hostile.source
    assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩gnp\ufffd" in hostile.text
    assert "שלום" in hostile.text
    assert "a\tb\nc" == visible("a\tb\r\nc")


def test_names_in_charts_hold_no_tags_for_plotly_to_read(hostile: Page) -> None:
    names = [t["name"] for f in hostile.figures.values() for t in f["data"]]
    assert any("&lt;img" in name for name in names)
    assert not any("<" in name for name in names)
    assert "&lt;a href=&quot;" not in label("<a>")


def test_the_policy_of_the_page_lets_in_its_own_scripts_and_nothing_else(page: Page) -> None:
    (policy,) = (a["content"] for t, a in page.tags if "http-equiv" in a)
    run = [text for attrs, text in page.scripts if "type" not in attrs]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in run]
    assert 6 == len(run)  # plotly and our charts; preact, its hooks, htm, and our browser
    assert [f"sha256-{h}" for h in hashes] == re.findall(r"sha256-[\w+/=]+", str(policy))
    assert "default-src 'none'" in str(policy)
    assert "http" not in str(policy)


@pytest.mark.parametrize("which", ["page", "hostile"])
def test_nothing_is_fetched(which: str, request: pytest.FixtureRequest) -> None:
    shown = request.getfixturevalue(which)
    loading = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}
    links = [(t, a) for t, a in shown.tags if loading & a.keys()]
    assert {"#charts", "#browse"} <= {a["href"] for _, a in links}  # places of the page itself
    assert all(t == "a" and str(a["href"]).startswith("#") for t, a in links)
    assert not {"link", "iframe", "img", "object", "embed", "base"} & {t for t, _ in shown.tags}
    (style,) = re.findall(r"<style>(.*?)</style>", shown.source, re.DOTALL)
    assert not re.search(r"url\(|@import", style)


def test_every_chart_has_words_and_numbers_for_those_who_cannot_see_it(page: Page) -> None:
    labels = [str(a["aria-label"]) for t, a in page.tags if a.get("role") == "img"]
    assert len(page.figures) == len(labels)
    assert any("from 0.955 to 0.455 nats per token" in text for text in labels)
    (rows,) = (t for t in page.tables.values() if t[0] == ["Iteration", "entropy"])
    assert ["0", "1"] == rows[1]
    assert ["59", "0.410"] == rows[-1]


def test_every_colour_has_a_counterpart_for_dark_screens(page: Page) -> None:
    drawn_in = set(re.findall(r"#[0-9a-f]{6}", json.dumps(list(page.figures.values()))))
    assert drawn_in <= set(_figures.PALETTE)


# ---------------------------------------------------------------- comparisons


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A run that loses entropy, and one that holds it."""
    falling = write_run(tmp_path / "grpo", [iteration(i) for i in range(20)])
    held = [
        iteration(i, entropy=1.0, entropy_target=1.0, **{"repo_r.zeta": 0.01 * 2 ** (i % 5)})
        for i in range(20)
    ]
    return falling, write_run(tmp_path / "repo-r", held, parts=REPO)


def test_a_comparison_lists_what_differs_and_only_that(two) -> None:
    shown = Page(isentrope.compare(*two, out=two[0].parent / "c.html"))
    assert [
        ["Key", "grpo", "repo-r"],
        ["algorithm.transforms", "none", "repo-r"],
        ["algorithm.transforms.repo-r.zeta", "\u2013", "0.01"],
    ] == shown.tables["differences"]


def test_runs_keep_their_colours_in_every_chart(two) -> None:
    figures = Page(isentrope.compare(*two, out=two[0].parent / "c.html")).figures
    colours = defaultdict(set)
    for figure in figures.values():
        for trace in figure["data"]:
            colours[trace["name"].removesuffix(" (target)")].add(
                trace.get("line", trace.get("marker"))["color"]
            )
    assert {"grpo": 1, "repo-r": 1} == {name: len(found) for name, found in colours.items()}
    assert colours["grpo"] != colours["repo-r"]
    assert {"Entropy", "Reward", "Success", "Knob repo_r.zeta"} == set(figures)


def test_a_comparison_shows_both_ends_of_each_run(two) -> None:
    shown = Page(isentrope.compare(*two, out=two[0].parent / "c.html"))
    rows = {row[0].split("\n")[0]: row for row in shown.tables["runs"]}
    (grpo,) = (row for name, row in rows.items() if name.startswith("grpo"))
    assert "0.955 → 0.855" in grpo
    assert "\u221210 %" in grpo


def test_runs_of_equal_configuration_and_name_are_told_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "run", [iteration(0)])
    other = write_run(tmp_path / "b" / "run", [iteration(0)])
    shown = Page(isentrope.compare(one, other, out=tmp_path / "c.html"))
    assert "a/run against b/run" in shown.text
    third = write_run(tmp_path / "c" / "a" / "run", [iteration(0)])
    shown = Page(isentrope.compare(one, third, out=tmp_path / "c.html"))
    assert "run against run (2)" in shown.text
    assert "Nothing: they have the same configuration." in shown.text


def test_runs_without_metrics_can_be_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    assert "No metrics yet" in Page(isentrope.compare(*runs, out=tmp_path / "c.html")).source


def test_how_a_run_learns_is_one_line() -> None:
    config = {"rollout": {"tasks": 4, "group": 8}, "algorithm": {"aggregation": "token-mean"}}
    said = _configs.learning_in_words(config)
    assert (
        "4 tasks \u00d7 8 rollouts per iteration; 1 pass over them in one batch; "
        "losses added up by token-mean; trained are the full weights"
    ) == said
    config = {"rollout": {"staleness": 1}, "learner": {"lora": {"r": 16}}}
    said = _configs.learning_in_words(config)
    assert "per iteration, sampled up to 1 update earlier;" in said
    assert said.endswith("trained are adapters of rank 16")


def test_the_order_of_transforms_is_a_difference() -> None:
    first = {"algorithm": {"transforms": [{"id": "a", "x": 1}, {"id": "b"}]}}
    second = {"algorithm": {"transforms": [{"id": "b"}, {"id": "a", "x": 1}]}}
    assert [("algorithm.transforms", ["a, b", "b, a"])] == _configs.differences([first, second])


def test_many_runs_differ_in_dash_once_the_hues_are_used_up() -> None:
    looks = [
        (line.hue, line.dash) for line in (_figures.Line("", (), (), style) for style in range(24))
    ]
    assert 24 == len(set(looks))


# ---------------------------------------------------------------- mistakes, and the command line


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(isentrope.ConfigError, match="two runs or more, or two evaluations; got 1"):
        isentrope.compare(write_run(tmp_path / "r"))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [iteration(0)])
    (run / "metrics.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(isentrope.ConfigError, match=r"metrics.jsonl, line 2 is not JSON"):
        isentrope.report(run)


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    with pytest.raises(isentrope.ConfigError, match=r"cannot be written: No such file"):
        isentrope.report(run, tmp_path / "missing" / "page.html")


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isentrope", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_makes_both_pages(two, tmp_path: Path) -> None:
    reported = command("report", "grpo", cwd=tmp_path)
    assert (0, "Report: grpo/report.html\n", "") == (
        reported.returncode, reported.stdout, reported.stderr
    )  # fmt: skip
    compared = command("compare", "grpo", "repo-r", "--out", "both.html", cwd=tmp_path)
    assert (0, "Comparison: both.html\n") == (compared.returncode, compared.stdout)
    assert {"Entropy", "Reward"} <= set(Page(tmp_path / "both.html").figures)


@pytest.mark.slow
def test_view_serves_the_page_until_ctrl_c(tmp_path: Path) -> None:
    write_run(tmp_path / "r", [iteration(0)], [episode(0)])
    viewing = subprocess.Popen(
        [sys.executable, "-um", "isentrope", "view", "r"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert viewing.stdout is not None
    address = viewing.stdout.readline().split()[1]
    with urlopen(address) as answer:
        assert b"1 of 60 iterations" in answer.read()
    taken = command("view", "r", "--port", address.strip("/").split(":")[-1], cwd=tmp_path)
    assert (2, "") == (taken.returncode, taken.stdout)
    assert "cannot be served on: Address already in use" in " ".join(taken.stderr.split())
    viewing.send_signal(signal.SIGINT)
    assert ("", "") == viewing.communicate(timeout=60)
    assert 130 == viewing.returncode


@pytest.mark.parametrize("arguments", [("report", "."), ("view", "."), ("compare", ".", "..")])
def test_a_folder_that_is_no_run_is_one_sentence(arguments, tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert (2, 1) == (done.returncode, len(done.stderr.strip().splitlines()))
    assert "error: . is not a run folder: it has no config.toml." in done.stderr


# ---------------------------------------------------------------- evaluations


def evaluation(outcomes: Mapping[str, str], **more: Any) -> isentrope.Evaluation:
    """Make one of the attempts at each task: 1 right, 0 wrong, x failed."""
    attempts = [
        isentrope.Attempt(
            task=task, rollout=i, seed=0, reward=float(sign == "1"), success=sign == "1",
            judged=True, status="env_error" if sign == "x" else "ok",
            stop_reason="failed" if sign == "x" else "terminated", turns=1, tokens=3, metrics={},
            messages=(), report="", error="RuntimeError: <b>no server</b>" if sign == "x" else None,
        )
        for task, signs in outcomes.items()
        for i, sign in enumerate(signs)
    ]  # fmt: skip
    k = max(map(len, outcomes.values()))
    return isentrope.Evaluation("e", "test", k, tuple(attempts), **more)


TASKS = {"a": "1100", "b": "0100", "c": "1111", "d": "0000"}


def test_the_page_of_an_evaluation_shows_its_numbers_and_curves(tmp_path: Path) -> None:
    result = evaluation(TASKS, policy="runs/x", about={"rollout": {"temperature": 0.7}})
    page = Page(isentrope.report(result, tmp_path / "page.html"))
    rows = {row[0]: row[1] for row in page.tables["numbers"]}
    two = result.estimates["pass@2"]
    assert f"{two.value:.3f} ({two.low:.3f} to {two.high:.3f})" == rows["pass@2"]
    assert {"success", "pass@2", "pass@4", "pass^2", "pass^4", "reward"} < set(rows)
    assert ["0.7"] == [row[1] for row in page.tables["about"] if row[0] == "rollout.temperature"]
    for title, chances in (("pass@k", result.pass_at), ("pass^k", result.pass_all)):
        *edges, line = page.figures[title]["data"]
        assert [*chances.values()] == pytest.approx(line["y"], rel=1e-4)
        sign = title[4]
        bounds = [result.estimates[f"pass{sign}{j}"] for j in range(1, 5)]
        assert [e.low for e in bounds] == pytest.approx(edges[0]["y"], rel=1e-4)
        assert [e.high for e in bounds] == pytest.approx(edges[1]["y"], rel=1e-4)
        assert "tonexty" == edges[1]["fill"]


def test_pages_of_evaluations_are_called_by_their_policies(tmp_path: Path) -> None:
    def title(*policies: str) -> str:
        several = [
            evaluation(TASKS, policy=policy, path=tmp_path / f"arithmetic-test-{i}")
            for i, policy in enumerate(policies)
        ]
        page = tmp_path / "page.html"
        if len(several) == 1:
            isentrope.report(several[0], page)
        else:
            isentrope.compare(*several, out=page)
        found = re.search(r"<h1>(.*)</h1>", page.read_text())
        assert found is not None
        return found[1]

    assert "a" == title("/very/long/runs/a")
    assert "a against b" == title("runs/a", "runs/b")
    assert "3 evaluations" == title("runs/a", "runs/b", "runs/c")
    assert "arithmetic-test-0 against arithmetic-test-1" == title("runs/a", "runs/a")


def test_the_page_of_evaluations_subtracts_the_first_from_the_others(tmp_path: Path) -> None:
    first = evaluation(TASKS, policy="one", about={"seed": 0, "rollout": {"top_p": 1.0}})
    second = evaluation(
        {**TASKS, "d": "1111", "more": "0000"},
        policy="two",
        about={"seed": 0, "rollout": {"top_p": 0.9}},
    )
    page = Page(isentrope.compare(first, second, out=tmp_path / "page.html"))
    found = second.against(first).differences["success"]
    rows = {row[0]: row[1] for row in page.tables["compared"]}
    assert 0.25 == found.value
    assert f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})" == rows["success"]
    assert "Tasks that only two has, which are left out: 1." in page.text
    assert [["rollout.top_p", "1.0", "0.9"]] == [
        row for row in page.tables["differences"] if row[0].startswith("rollout")
    ]
    assert {"one", "two"} == {trace["name"] for trace in page.figures["pass@k"]["data"]}


def test_failures_of_an_evaluation_stand_on_its_page_as_text(tmp_path: Path) -> None:
    page = Page(isentrope.report(evaluation({"a": "1x", "b": "xx"}), tmp_path / "page.html"))
    assert "env_error \u00d7 3" in page.text
    assert "RuntimeError: <b>no server</b>" in page.text
    assert "3 of 4 attempts failed (3 env_error)" in page.text


def test_where_every_attempt_failed_the_page_says_so_without_numbers(tmp_path: Path) -> None:
    page = Page(isentrope.report(evaluation({"a": "xx", "b": "xx"}), tmp_path / "page.html"))
    assert "\u2013" == dict(row for row in page.tables["numbers"])["success"]


def test_an_evaluation_without_a_folder_needs_a_file_for_its_page() -> None:
    with pytest.raises(isentrope.ConfigError, match="has no folder: name the page's file"):
        isentrope.report(evaluation(TASKS))


def test_runs_and_evaluations_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(isentrope.ConfigError, match="runs or evaluations, and not both"):
        isentrope.compare(evaluation(TASKS), write_run(tmp_path / "r"))


# ---------------------------------------------------------------- packaging


def test_importing_the_reports_loads_neither_plotly_nor_torch() -> None:
    code = (
        "import sys, isentrope; isentrope.report; "
        "print({'torch', 'plotly', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "set()\n" == done.stdout


def test_the_wheel_holds_templates_style_and_script(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    root = Path(__file__).parents[2]
    path = next(WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))
    folder = root / "sdk/isentrope/reporting"
    assets = {p.relative_to(folder) for p in (folder / "assets").rglob("*") if p.is_file()}
    with ZipFile(path) as wheel:
        names = set(wheel.namelist())
    assert assets
    assert {f"isentrope/reporting/{path}" for path in assets} <= names


def test_a_history_reads_a_run_or_its_folder(tmp_path: Path) -> None:
    run = isentrope.Run(write_run(tmp_path / "r", [iteration(0)]))
    assert History.read(run) == History.read(str(run.path))
    assert "Entropy stayed" in _charts.entropy_in_words(History.read(run))
