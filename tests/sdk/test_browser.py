"""The page in a real browser: what a person finds, sees and presses, and that nothing else runs.

Needs Playwright and a Chromium (`ISENTROPE_CHROMIUM`, or one on the path).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isentrope
from isentrope import Run
from tests.sdk.test_reporting import HOSTILE, episode, iteration, write_run

CHROMIUM = os.environ.get("ISENTROPE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None or find_spec("playwright") is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("Playwright, or a Chromium, is not there; set ISENTROPE_CHROMIUM to one's path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Open a page, and at the end make sure that it neither failed, said nor asked for anything.

    What it said is in `opened.said`.
    """
    said: list[str] = []
    contexts = []

    def open_(path: Path | str, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": 1300, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: said.append(f"error {error}"))
        page.on("console", lambda message: said.append(f"console {message.text}"))
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        address = path.as_uri() if isinstance(path, Path) else path
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "blob:", "data:")) else said.append(r.url),
        )
        page.goto(address)
        return page

    open_.said = said  # type: ignore[attr-defined]
    yield open_
    for context in contexts:
        context.close()
    assert [] == said


def tokens_of(texts: list[list[bytes]], **more: Any) -> dict[str, np.ndarray]:
    """Return columns of episodes whose first token is the prompt, and the others sampled."""
    words = sorted({word for text in texts for word in text})
    flat = [word for text in texts for word in text]
    sampled = np.concatenate([np.arange(len(text)) > 0 for text in texts])
    count = int(sampled.sum())
    columns = {
        "episode": np.arange(len(texts), dtype=np.int32),
        "length": np.array([len(text) for text in texts], np.int32),
        "step": np.zeros(len(texts), np.int32),
        "piece": np.array([words.index(word) for word in flat], np.int32),
        "segment": np.zeros(len(flat), np.int32),
        "turn": np.zeros(len(flat), np.int32),
        "sampled": sampled,
        "version": np.zeros(count, np.int32),
        **{
            name: np.zeros(count, np.float16)
            for name in ("logp", "entropy", "mismatch", "advantage", "transformed", "log_ratio")
        },
        "gradient": np.ones(count, np.uint8),
        "piece_id": np.arange(len(words), dtype=np.int32),
        "piece_end": np.cumsum([len(word) for word in words], dtype=np.int32),
        "piece_text": np.frombuffer(b"".join(words), np.uint8),
    }
    return columns | {k: np.asarray(v).astype(columns[k].dtype) for k, v in more.items()}


def put_tokens(run: Path, number: int, columns: dict[str, np.ndarray]) -> None:
    (run / "tokens").mkdir(exist_ok=True)
    np.savez_compressed(run / "tokens" / f"{number:06d}.npz", **columns)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of which every number is known: two iterations, of a group of three and of one."""
    path = tmp_path_factory.mktemp("known") / "run"
    group = [
        episode(1, task="sum", rollout=r, reward=r / 2, success=r == 2, seed=5, turns=1, tokens=4)
        for r in range(3)
    ]
    failed = episode(0, status="timeout", error="Deadline", task="slow", reward=0.0, turns=0)
    write_run(path, [iteration(i) for i in range(2)], [failed, *group])
    word = [b"ask", b" fine", b"\xf0\x9f", b"\x98\x80", b"!"]  # a face in two tokens
    put_tokens(
        path, 1,
        tokens_of(
            [word] * 3,
            entropy=[0, 1, 0, 2] * 3, logp=[-0.5] * 12, advantage=[1.0] * 12,
            transformed=[2, 1, 1, 1] * 3, log_ratio=np.log([2, 0.5, 1, 1] * 3),
            gradient=[0, 1, 1, 1] * 3, version=[0, 1, 1, 1] * 3,
        ),
    )  # fmt: skip
    return isentrope.report(path)


def shown(page: Any) -> list[str]:
    """Return the tasks of the list, as far as it is drawn."""
    page.wait_for_selector("#episodes .row")
    return page.locator(".row .task").all_inner_texts()


def tokens(page: Any) -> Any:
    page.wait_for_selector(".episode .t")
    return page.locator(".episode .t")


ORANGE, BLUE, PURPLE = (217, 95, 2), (31, 119, 200), (150, 60, 190)


def shades(page: Any) -> list[tuple[tuple[int, ...], float] | None]:
    """Return each token's hue and opacity, which the browser keeps in eight bits."""
    found = [t.evaluate("t => t.style.background") for t in tokens(page).all()]
    numbers = [[float(x) for x in re.findall(r"[\d.]+", shade)] for shade in found]
    return [(tuple(map(int, n[:3])), round(n[3], 2)) if n else None for n in numbers]


def test_the_newest_episode_is_open_with_its_tokens_as_one_text(known, opened) -> None:
    page = opened(known)
    assert ["sum", "sum", "sum", "slow"] == shown(page)
    assert [" fine", "", "\U0001f600", "!"] == [t.text_content() for t in tokens(page).all()]
    assert "t part" == tokens(page).nth(1).get_attribute("class")
    assert ["ask", " fine\U0001f600!"] == page.locator(".stream").all_text_contents()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_coloured_by_what_is_chosen(known, opened, scheme) -> None:
    page = opened(known, scheme)
    none, full = (ORANGE, 0.0), (ORANGE, 0.75)
    assert [none, (ORANGE, 0.38), none, full] == shades(page)
    page.select_option("#colour", "clipped")
    assert [(PURPLE, 0.75), None, None, None] == shades(page)
    page.select_option("#colour", "ratio")
    assert [full, (BLUE, 0.75), none, none] == shades(page)
    page.select_option("#colour", "weight")
    assert [full, none, none, none] == shades(page)
    page.select_option("#colour", "version")
    assert [(ORANGE, 0.22), None, None, None] == shades(page)


def test_the_values_of_a_token_stand_beside_it(known, opened) -> None:
    page = opened(known)
    tokens(page).nth(0).hover()
    values = page.locator(".tip").inner_text().split("\n")
    told = dict(zip(values[::2], values[1::2], strict=True))
    assert '" fine", id 0' == told["token"]
    assert ("0", "1", "2 (\u00d7 2)", "2", "none: clipped") == tuple(
        told[name] for name in ("entropy", "advantage", "transformed", "ratio", "gradient")
    )
    assert "\u22120.5 (p 0.607)" == told["log-prob"]
    tokens(page).nth(1).hover()
    assert "bytes f0 9f" in page.locator(".tip").inner_text()


def test_episodes_are_found_by_task_reward_status_and_iteration(known, opened) -> None:
    page = opened(known)
    for field, value, expected in [
        ("task", "SLO", ["slow"]), ("task", "", ["sum"] * 3 + ["slow"]),
        ("low", "0.5", ["sum"] * 2), ("high", "0.5", ["sum"]), ("iteration", "0", []),
    ]:  # fmt: skip
        page.fill(f"#by-{field}", value)
        page.wait_for_function(
            "n => document.querySelectorAll('.row').length === n", arg=len(expected)
        )
        assert expected == page.locator(".row .task").all_inner_texts()
    page.click("text=Clear")
    assert 4 == len(shown(page))
    page.select_option("#by-status", "timeout")
    page.wait_for_function("() => document.querySelectorAll('.row').length === 1")
    page.wait_for_selector("text=Deadline")
    assert "Its tokens were not kept." in page.inner_text(".detail")


def test_a_group_stands_side_by_side(known, opened) -> None:
    page = opened(known)
    tokens(page)
    page.check(".detail input[type=checkbox]")
    page.wait_for_function("() => document.querySelectorAll('.episode').length === 3")
    boxes = [e.bounding_box() for e in page.locator(".episode").all()]
    assert len({round(box["y"]) for box in boxes}) == 1
    assert ["rollout 0", "rollout 1", "rollout 2"] == page.locator("h4").all_inner_texts()


def test_keys_do_all_of_it(known, opened) -> None:
    page = opened(known)
    tokens(page)
    page.keyboard.press("j")
    page.wait_for_selector("h4:text('rollout 1')")
    page.keyboard.press("g")
    page.wait_for_function("() => document.querySelectorAll('.episode').length === 3")
    page.keyboard.press("c")
    assert "logp" == page.input_value("#colour")
    page.keyboard.press("/")
    page.keyboard.type("slow")
    page.wait_for_function("() => document.querySelectorAll('.row').length === 1")
    page.click("text=Clear")
    page.focus(".list")
    page.keyboard.press("End")
    page.wait_for_function("() => document.querySelector('.detail h3').innerText === 'slow'")
    page.keyboard.press("Home")
    tokens(page)
    page.keyboard.press("g")
    page.focus(".tokens")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "bytes f0 9f" in page.locator(".tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()


def in_chart(page: Any, share: float) -> tuple[float, float]:
    """Bring the first chart onto the screen; return a place so far along its axis of iterations."""
    area = page.locator(".js-plotly-plot .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    return box["x"] + share * box["width"], box["y"] + box["height"] / 2


def test_a_click_on_a_chart_offers_its_iteration_and_moves_nothing(known, opened) -> None:
    page = opened(known)
    tokens(page)
    page.keyboard.press("j")
    page.wait_for_selector("h4:text('rollout 1')")
    place = in_chart(page, 0.04)
    before = page.evaluate("scrollY")
    page.mouse.click(*place)
    page.wait_for_selector("text=Episodes of iteration 0")
    assert (before, 4) == (page.evaluate("scrollY"), page.locator(".row").count())
    page.click("text=Episodes of iteration 0")
    page.wait_for_function("() => document.querySelectorAll('.row').length === 1")
    assert ["slow"] == shown(page)
    assert "slow" == page.inner_text(".detail h3")  # the one before is of another iteration


def test_a_double_click_takes_the_zoom_back_however_slow_a_hand_is(known, opened) -> None:
    page = opened(known)
    tokens(page)
    reach = "() => String(document.querySelector('.js-plotly-plot').layout.xaxis.range)"
    before = page.evaluate(reach)
    page.mouse.move(*in_chart(page, 0.3))
    page.mouse.down()
    page.mouse.move(*in_chart(page, 0.5), steps=5)
    page.mouse.up()
    page.wait_for_function(f"() => ({reach})() !== '{before}'")
    place = in_chart(page, 0.5)
    page.wait_for_timeout(400)
    scrolled = page.evaluate("scrollY")
    for _ in range(2):
        page.mouse.click(*place)
        page.wait_for_timeout(150)
    page.wait_for_function(f"() => ({reach})() === '{before}'")
    assert scrolled == page.evaluate("scrollY")


def test_a_place_under_the_pointer_is_told_each_name_once(tmp_path, opened) -> None:
    path = write_run(tmp_path / "run", [iteration(i) for i in range(60)])
    page = opened(isentrope.report(path))
    page.wait_for_selector(".js-plotly-plot")
    page.mouse.move(*in_chart(page, 0.5))
    page.wait_for_selector(".hoverlayer .legend text.legendtext", state="attached")
    names = page.locator(".hoverlayer .legend text.legendtext").all_text_contents()
    said = [name.partition(":")[0].strip() for name in names]
    assert said
    assert len(set(said)) == len(said)


def test_an_episode_that_the_filter_leaves_out_is_not_shown(known, opened) -> None:
    page = opened(known)
    tokens(page)
    page.keyboard.press("j")
    page.fill("#by-task", "slow")
    page.wait_for_function("() => document.querySelector('.detail h3').innerText === 'slow'")
    page.fill("#by-task", "zzzz")
    page.wait_for_selector("text=No episode is like that.")
    assert 0 == page.locator(".detail").count()


def test_keys_work_after_a_search_and_after_the_checkbox(known, opened) -> None:
    page = opened(known)
    tokens(page)
    page.keyboard.press("/")
    page.keyboard.type("sum")
    page.wait_for_function("() => document.querySelectorAll('.row').length === 3")
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    page.wait_for_selector("h4:text('rollout 1')")
    page.click(".detail input[type=checkbox]")
    page.wait_for_function("() => document.querySelectorAll('.episode').length === 3")
    page.keyboard.press("k")
    page.wait_for_selector(".episode[aria-current=true] h4:text('rollout 2')")


def test_a_rollout_that_failed_says_so_where_it_is_chosen(tmp_path, opened) -> None:
    group = [
        episode(0, task="sum", rollout=r, reward=1.0, success=True, seed=5, turns=1,
                **({"status": "env_error", "error": "Broken"} if r else {"judged": False}))
        for r in range(2)
    ]  # fmt: skip
    page = opened(isentrope.report(write_run(tmp_path / "run", [iteration(0)], group)))
    chip = page.locator(".chip").nth(1)
    assert chip.inner_text().startswith("1: env_error")
    bad = page.evaluate("getComputedStyle(document.querySelector('.row.bad')).color")
    assert bad == chip.evaluate("e => getComputedStyle(e).color")
    page.click(".row:not(.bad)")
    page.wait_for_function("() => !document.querySelector('.episode .bad')")
    assert "success" not in page.inner_text(".episode")  # nobody judged it
    assert "success" not in page.get_attribute(".chip >> nth=0", "title")
    page.select_option("#by-success", "0")
    page.wait_for_function("() => document.querySelectorAll('.row').length < 2")
    assert 0 == page.locator(".row:not(.bad)").count()


def test_ten_thousand_episodes_open_and_filter_at_once(tmp_path, opened) -> None:
    path = tmp_path / "run"
    each = 200
    text = "Let me think about it. " * 20
    write_run(
        path,
        [iteration(i) for i in range(50)],
        [
            episode(i, task=f"task-{k // 8}", rollout=k % 8, reward=k / each, seed=k // 8,
                    messages=[{"role": "assistant", "content": f"{i} {k} {text}"}])
            for i in range(50)
            for k in range(each)
        ],
    )  # fmt: skip
    random = np.random.default_rng(0)
    for i in range(50):
        words = [
            [b"prompt", *(b" %d" % n for n in random.integers(0, 500, 40))] for _ in range(each)
        ]
        values = random.normal(size=(3, 40 * each))
        put_tokens(
            path, i, tokens_of(words, logp=values[0], entropy=values[1], advantage=values[2])
        )
    made = isentrope.report(path)
    assert made.stat().st_size < 25e6
    begun = time.perf_counter()
    page = opened(made)
    tokens(page)
    assert time.perf_counter() - begun < 20  # a second or two on a machine with nothing else to do
    assert "10,000 of 10,000 episodes" in page.inner_text("#episodes [role=status]")
    assert page.locator(".row").count() < 60  # only what can be seen
    took = page.evaluate(
        """async () => {
            const begun = performance.now(), field = document.querySelector("#by-task");
            field.value = "task-17";
            field.dispatchEvent(new Event("input", { bubbles: true }));
            const say = () => document.querySelector("#episodes [role=status]").innerText;
            while (!say().startsWith("400 of")) await new Promise(requestAnimationFrame);
            return performance.now() - begun;
        }"""
    )
    assert took < 1000
    page.fill("#by-iteration", "3")
    page.wait_for_function(
        "() => document.querySelector('.detail').innerText.includes('iteration 3')"
    )
    assert 40 == tokens(page).count()


def test_hostile_text_is_shown_and_nothing_of_it_runs(tmp_path, opened) -> None:
    bad = episode(
        0, task=HOSTILE, stop_reason=HOSTILE, report=HOSTILE, metrics={HOSTILE: 1.0},
        messages=[{"role": HOSTILE, "content": HOSTILE}, HOSTILE, None, {"content": 7}],
    )  # fmt: skip
    path = write_run(
        tmp_path / "run",
        [iteration(0)],
        [bad, {**bad, "rollout": 1}, {**bad, "status": HOSTILE, "error": HOSTILE, "rollout": None}],
    )
    raw = HOSTILE.encode("utf-8", "replace")
    put_tokens(path, 0, tokens_of([[raw, raw, b"\xff\xfe", b"<img src=x onerror=alert(1)>"]]))
    page = opened(isentrope.report(path))
    page.wait_for_selector(".row")
    for _ in range(3):
        page.wait_for_selector(".episode")
        assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.inner_text(".detail")
        assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩gnp" in page.inner_text(".detail")
        page.keyboard.press("j")
        page.wait_for_timeout(300)
    page.keyboard.press("Home")
    page.focus(".list")
    page.keyboard.press("End")
    tokens(page).nth(2).hover()
    assert '"<img src=x onerror=alert(1)>"' in page.locator(".tip").inner_text()
    assert 0 == page.locator("img, iframe, object, embed").count()
    assert 6 == page.locator("script:not([type])").count()


def test_an_iteration_that_found_no_room_says_where_it_can_be_seen(
    tmp_path, opened, monkeypatch
) -> None:
    from isentrope.reporting import _episodes

    path = write_run(tmp_path / "run", [iteration(0)], [episode(0), episode(1), episode(2)])
    monkeypatch.setattr(_episodes.EpisodeFile.embedded, "__defaults__", (0,))
    page = opened(isentrope.report(path))
    page.fill("#by-iteration", "0")
    page.wait_for_function("() => document.querySelector('.detail').innerText.includes('no room')")
    assert "isentrope view" in page.inner_text(".detail")


# ---------------------------------------------------------------- live


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, str]:
    """A run that has no iteration yet, and its address."""
    path = write_run(tmp_path / "run")
    addresses: list[str] = []
    threading.Thread(
        target=lambda: isentrope.view(path, tell=addresses.append), daemon=True
    ).start()
    deadline = time.monotonic() + 60
    while not addresses and time.monotonic() < deadline:
        time.sleep(0.05)
    return path, addresses[0]


def append(run: Path, number: int) -> None:
    """Write an iteration as a run does: metrics last."""
    for name, record in (("episodes", episode(number)), ("metrics", iteration(number))):
        with (run / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def test_the_page_follows_a_run_that_is_training(served, opened) -> None:
    run, address = served
    page = opened(address)
    assert "no metrics yet" in page.inner_text(".state")
    for number in range(3):
        append(run, number)
    page.wait_for_function("() => document.querySelector('.state').innerText.startsWith('3 of 60')")
    page.wait_for_function("() => document.querySelectorAll('.row').length === 3")
    page.wait_for_selector(".js-plotly-plot")
    page.fill("#by-task", "task-")
    append(run, 3)
    page.wait_for_function("() => document.querySelectorAll('.row').length === 4")
    page.wait_for_function("() => document.querySelector('.js-plotly-plot').data[0].x.length === 4")
    assert "task-" == page.input_value("#by-task")  # what the reader did stays
    Run(run).rewind(1)  # resumed from a checkpoint
    page.wait_for_function("() => document.querySelectorAll('.row').length === 1")
    assert page.inner_text(".state").startswith("1 of 60")


@pytest.mark.parametrize("looked_at", [True, False])
def test_what_is_being_read_stays_while_iterations_come(served, opened, looked_at: bool) -> None:
    run, address = served
    for number in range(40):
        append(run, number)
    page = opened(address)
    page.wait_for_function("() => document.querySelectorAll('.row').length > 20")
    if looked_at:
        page.hover(".detail")
    read = page.inner_text(".detail .faint")
    page.locator(".list").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('.list').scrollTop = 500")
    page.wait_for_timeout(200)
    top = "() => document.elementsFromPoint(...(r => [r.x + 60, r.y + 40])(document"
    top += ".querySelector('.list').getBoundingClientRect())).find(e => e.closest('.row'))"
    seen = page.evaluate(f"{top}.closest('.row').innerText")
    append(run, 40)
    page.wait_for_function("() => document.querySelector('.state').innerText.startsWith('41 of')")
    page.wait_for_function(
        "() => document.querySelector('#episodes [role=status]').innerText.startsWith('41 of')"
    )
    assert looked_at == (read == page.inner_text(".detail .faint"))
    assert seen == page.evaluate(f"{top}.closest('.row').innerText")


def test_an_iteration_that_could_not_be_read_is_asked_for_again(served, opened) -> None:
    run, address = served
    append(run, 0)
    page = opened(address)
    page.route("**/chunk-0", lambda route: route.fulfill(status=404, body=""))
    page.wait_for_function("() => document.querySelector('.detail')?.innerText.includes('no room')")
    page.unroute("**/chunk-0")
    append(run, 1)
    page.wait_for_function("() => document.querySelectorAll('.row').length === 2")
    page.click(".row >> nth=1")
    page.wait_for_selector(".episode")
    assert 1 == len(opened.said)
    assert "404" in opened.said.pop()


def test_only_this_machine_is_answered_under_its_own_name(served) -> None:
    import http.client

    _, address = served
    place = address.removeprefix("http://").strip("/")
    assert place.startswith("127.0.0.1:")

    def status(path: str, host: str) -> int:
        connection = http.client.HTTPConnection(place, timeout=30)
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status

    assert [200, 200, 403, 403] == [
        status("/", host)
        for host in (place, "localhost:1", "evil.example", "127.0.0.1.evil.example")
    ]
    assert [404, 404] == [status(path, place) for path in ("/../config.toml", "/chunk-7")]
