"""The ranking page, walked with keyboard, mouse and finger; what counts is what the store holds afterwards."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.entities import Counts
from data.errors import BadInput
from data.notation import format_ranking, parse_ranking
from data.records import PromptRecord, read_record
from data.shown_order import shown_labels
from data.store import Store

pytestmark = pytest.mark.browser

BOARD = Path(__file__).resolve().parents[2] / "annotate" / "board"
HOSTILE = [
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>",
    "<iframe srcdoc='<script>top.pwned = 3</script>'></iframe><svg onload='window.pwned = 4'>",
    "[link](javascript:window.pwned=5) <a href='javascript:window.pwned=6'>link</a> ![beacon](http://192.0.2.1/b.png)",
    "`${window.pwned = 7}` ${top.pwned = 8} {{constructor}} <link rel=stylesheet href=http://192.0.2.1/c.css>",
    "<style>@import 'http://192.0.2.1/d.css'; body { display: none }</style><base href=http://192.0.2.1/>",
]


def prompts(*sizes: int) -> list[dict[str, Any]]:
    """Rows with so many responses each."""
    return [
        {"id": f"p{i}", "prompt": f"Question {i}?", "responses": [f"Answer {n} to {i}" for n in range(1, size + 1)]}
        for i, size in enumerate(sizes, start=1)
    ]


@pytest.fixture(scope="module")
def filled(workspace: Path) -> None:
    """One project per test, so that each starts from nothing."""
    store = Store.open(workspace)
    projects = {
        "walk": prompts(3, 3, 4, 3, 3, 3),
        "twice": prompts(3, 3),
        "tabs": prompts(3, 3),
        "draft": prompts(3, 3),
        "keys": prompts(4, 3),
        "outage": prompts(3, 3),
        "phone": prompts(9, 3),
        "last": prompts(2),
        "hostile": [{"id": "h", "prompt": HOSTILE[0], "responses": HOSTILE}],
        "empty": [],
    }
    for name, rows in projects.items():
        project = store.create_project(name, guidelines=HOSTILE[0] if name == "hostile" else "Be **fair**.")
        store.add_prompts(project.id, [read_record(row, where=name) for row in rows])
    store.close()


@pytest.fixture
def stored(workspace: Path) -> Callable[[str], list[PromptRecord]]:
    """Reads a project from the database file, beside the running server."""

    def read(project: str) -> list[PromptRecord]:
        store = Store.open(workspace)
        try:
            return list(store.records(store.project(project).id))
        finally:
            store.close()

    return read


def as_shown(record: PromptRecord) -> str:
    """The one stored ranking of a prompt, back in the labels that were on screen."""
    (entry,) = record.rankings
    return format_ranking(entry.ranking.relabel(shown_labels(entry.order)))


def counts(workspace: Path, project: str) -> Counts:
    store = Store.open(workspace)
    try:
        return store.counts(store.project(project).id)
    finally:
        store.close()


def press(page: Any, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def expect_text(page: Any, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).wait_for(timeout=10_000)


def drag(page: Any, source: str, target: str) -> None:
    """Press, move, look where the target is now (gaps widen), move there, release."""
    start = page.locator(source).bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 30, start["y"] - 20, steps=3)
    for _ in range(2):
        end = page.locator(target).bounding_box()
        page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=3)
    page.mouse.up()


def test_five_prompts_ranked_in_every_way_are_in_the_store_exactly(open_page: Any, stored: Any) -> None:
    page = open_page("walk")
    press(page, "2 1 3 Enter")
    expect_text(page, ".notice", "Saved A2>A1>A3 · u undoes")

    drag(page, ".pool .chip[data-drag='3']", ".gap[data-drop='gap:0']")
    drag(page, ".card:nth-child(1) > header .badge", ".tier[data-drop='tier:0']")
    drag(page, ".pool .chip[data-drag='2']", ".gap[data-drop='gap:0']")
    assert page.input_value(".notation") == "A2>A1=A3"
    press(page, "Enter")
    expect_text(page, ".notice", "Saved A2>A1=A3")

    press(page, "/")
    page.keyboard.type("a2＞A1=3 | A4")
    press(page, "Enter")
    expect_text(page, ".notice", "Saved A2>A1=A3|A4")

    press(page, "1 2 u 3 Enter")
    expect_text(page, ".notice", "Saved A1>A3 · A2 left unranked · u undoes")
    press(page, "u")
    expect_text(page, ".notice", "Taken back")
    assert page.input_value(".notation") == "A1>A3"
    press(page, "2 Enter")
    expect_text(page, ".notice", "Saved A1>A3>A2")

    press(page, "s")
    page.keyboard.type("do not know 1 2 3")
    press(page, "Enter")
    expect_text(page, ".notice", "Skipped")

    press(page, "b 3 1 Enter")
    expect_text(page, ".notice", "Saved |A3>A1 · A2 left unranked")
    page.reload()
    expect_text(page, ".nothing h2", "All done")
    expect_text(page, ".counts", "5 of 6 ranked · 1 skipped · 0 flagged")

    records = stored("walk")
    ranked = [record for record in records if record.rankings]
    assert [as_shown(record) for record in ranked] == ["A2>A1>A3", "A2>A1=A3", "A2>A1=A3|A4", "A1>A3>A2", "|A3>A1"]
    assert [entry.reason for record in records for entry in record.set_aside] == ["do not know 1 2 3"]
    assert records[4].set_aside
    assert [record.rankings[0].revision for record in ranked] == [1, 1, 1, 3, 1]


def test_enter_pressed_twice_is_one_ranking(open_page: Any, workspace: Path) -> None:
    page = open_page("twice")
    press(page, "1 2 3 Enter Enter Enter")
    expect_text(page, ".counts", "1 of 2 ranked")
    page.wait_for_timeout(300)
    assert counts(workspace, "twice").rankings == 1


def test_the_slower_of_two_tabs_keeps_its_work_and_may_submit_it_as_newer(open_page: Any, stored: Any) -> None:
    fast, slow = open_page("tabs"), open_page("tabs")
    press(fast, "1 2 3 Enter")
    expect_text(fast, ".notice", "Saved")
    press(slow, "3 2 1 Enter")
    expect_text(slow, ".problem", "another tab")
    assert slow.input_value(".notation") == "A3>A2>A1"
    press(slow, "Enter")
    expect_text(slow, ".notice", "Saved A3>A2>A1")
    record = stored("tabs")[0]
    assert (as_shown(record), record.rankings[0].revision) == ("A3>A2>A1", 2)


def test_a_draft_survives_a_reload(open_page: Any) -> None:
    page = open_page("draft")
    press(page, "2 = 3")
    press(page, "c")
    page.keyboard.type("hard to say")
    press(page, "Enter")
    expect_text(page, ".saved", "Draft saved")
    page.reload()
    page.wait_for_selector(".board[data-state=task]")
    assert page.input_value(".notation") == "A2=A3"
    press(page, "c")
    assert page.input_value(".note textarea") == "hard to say"


def test_a_killed_server_loses_nothing_and_enter_tries_again(open_page: Any, server: Any, stored: Any) -> None:
    page = open_page("outage")
    press(page, "3 1 2")
    server.end(signal.SIGKILL)
    press(page, "Enter")
    expect_text(page, ".problem", "Not saved, your ranking is kept")
    assert page.input_value(".notation") == "A3>A1>A2"
    server.start()
    press(page, "Enter")
    expect_text(page, ".notice", "Saved A3>A1>A2")
    record = stored("outage")[0]
    assert (as_shown(record), record.rankings[0].revision) == ("A3>A1>A2", 1)


def test_hostile_texts_do_nothing(open_page: Any, chromium: Any, server: Any) -> None:
    page = open_page("hostile")
    requests: list[str] = []
    page.context.on("request", lambda request: requests.append(request.url))
    page.reload()
    page.wait_for_selector(".board[data-state=task]")
    press(page, "g")
    for link in page.locator(".cards a, .conversation a").all():
        link.click()
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert page.locator(".cards :is(script, iframe, img, svg, style, base, link)").count() == 0
    assert [url for url in requests if not url.startswith((server.url, "data:", "blob:"))] == []
    for text in ("<script>window.pwned = 1</script>", "[link](javascript:window.pwned=5)", "${top.pwned = 8}"):
        expect_text(page, ".cards", text)


def test_keys_typed_into_fields_and_input_methods_rank_nothing(open_page: Any) -> None:
    page = open_page("keys")
    press(page, "c 1 2 Escape")
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', isComposing: true, bubbles: true}))")
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', ctrlKey: true, bubbles: true}))")
    assert page.input_value(".notation") == ""
    press(page, "Enter")
    expect_text(page, ".problem", "Nothing is ranked yet")


def test_the_keyboard_alone_reaches_every_move(open_page: Any) -> None:
    page = open_page("keys")
    notation = page.locator(".notation")
    press(page, "1 2 3 4 b")
    assert notation.input_value() == "A1>A2>A3>A4|"
    page.locator(".tiers .bar").focus()
    press(page, "ArrowLeft ArrowLeft")
    assert notation.input_value() == "A1>A2|A3>A4"
    page.locator(".tiers .chip[data-drag='4']").focus()
    press(page, "ArrowLeft")
    assert notation.input_value() == "A1>A2|A3=A4"
    press(page, "ArrowLeft ArrowLeft")
    assert notation.input_value() == "A1>A2>A4|A3"
    press(page, "Space")
    assert notation.input_value() == "A1>A2|A3"
    press(page, "u u")
    assert notation.input_value() == "A1>A2|A4>A3"
    press(page, "f Enter")
    expect_text(page, ".problem", "A flag needs a reason")
    press(page, "Escape / Control+a")
    page.keyboard.type("A1>A9")
    expect_text(page, ".problem", "Place 4: A9 does not exist; the responses are A1 to A4.")
    press(page, "Enter")
    assert page.locator(".counts").inner_text().startswith("0 of 2")


def test_history_reopens_an_earlier_answer(open_page: Any, stored: Any) -> None:
    page = open_page("last")
    press(page, "1 2 Enter")
    expect_text(page, ".nothing h2", "All done")
    press(page, "h")
    page.locator(".history button").click()
    expect_text(page, ".reopened", "You are changing an earlier answer (A1>A2)")
    press(page, "u")
    expect_text(page, ".notice", "Taken back")
    page.locator(".tiers .chip[data-drag='1']").focus()
    press(page, "ArrowRight Enter")
    expect_text(page, ".nothing h2", "All done")
    assert as_shown(stored("last")[0]) == "A1=A2"


def test_an_empty_project_points_to_the_data_page(open_page: Any) -> None:
    page = open_page("empty")
    expect_text(page, ".nothing", "This project has no prompts")
    assert page.locator(".nothing a").get_attribute("href") == "data"


def test_a_phone_needs_no_sideways_scrolling_and_ranks_by_finger(open_page: Any) -> None:
    page = open_page("phone", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for number in (4, 2, 7):
        page.locator(f".pool .chip[data-drag='{number}']").tap()
    touch_drag(page, ".pool .chip[data-drag='9']", ".tier[data-drop='tier:1']")
    assert page.input_value(".notation") == "A4>A2=A9>A7"
    for button in ("guidelines", "history", "help"):
        page.locator(f"[data-do={button}]").first.tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("[data-do=close]").tap()


def touch_drag(page: Any, source: str, target: str) -> None:
    devtools = page.context.new_cdp_session(page)

    def touch(kind: str, selector: str | None) -> None:
        points = []
        if selector:
            box = page.locator(selector).bounding_box()
            points = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", source)
    for _ in range(3):
        touch("touchMove", target)
    touch("touchEnd", None)


def test_the_page_follows_a_dark_system(open_page: Any) -> None:
    def lightness(page: Any) -> int:
        colour = page.evaluate("getComputedStyle(document.querySelector('.dock')).backgroundColor")
        return sum(int(n) for n in re.findall(r"\d+", colour)[:3])

    assert lightness(open_page("keys", color_scheme="dark")) < 200 < lightness(open_page("keys", color_scheme="light"))


def test_the_page_speaks_chinese_to_a_chinese_browser_and_switches(open_page: Any) -> None:
    page = open_page("keys", locale="zh-CN")
    expect_text(page, "h1", "给回答排序")
    page.locator("[data-do=language]").click()
    expect_text(page, "h1", "Rank the responses")
    page.reload()
    expect_text(page, "h1", "Rank the responses")


def test_both_languages_have_every_text(chromium: Any) -> None:
    source = (BOARD / "strings.js").read_text(encoding="utf-8").split("let language")[0]
    page = chromium.new_page()
    texts = page.evaluate(f"(() => {{ {source}; return STRINGS; }})()")
    page.close()
    assert texts["en"].keys() == texts["zh"].keys()
    for name, english in texts["en"].items():
        if isinstance(english, str):
            assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", texts["zh"][name])), name
    assert len(texts["en"]["helpRows"]) == len(texts["zh"]["helpRows"])


NOTATIONS = [
    *("A2>A1=A3|A4", "|A1>A2", "A1|", "A1 > a2=3", "Ａ２＞Ａ１＝Ａ３｜Ａ４", "１>２", "A2~A1", "4"),
    *(
        "A1>",
        "A1>>A2",
        "A1>A5",
        "A1>A0",
        "A1=A1",
        "A1|A2|A3",
        "|",
        "||A1",
        "A",
        "AA1",
        "A1 A2",
        "A1,A2",
        "B1",
        "A1>A99999",
    ),
    *("A1>|A2", "A1|>A2", "=A1", "A1=|A2", "A01>A2", "  A1>A2  ", "A1>A2|A3=A4", "A1>A99999"),
]


def test_the_page_reads_the_notation_as_the_server_does(chromium: Any) -> None:
    source = (BOARD / "notation.js").read_text(encoding="utf-8")
    page = chromium.new_page()
    read = f"""(texts => {{ {source}
        return texts.map(text => {{
            try {{ return formatPlaces(parseNotation(text, 4)); }} catch (error) {{ return error.place; }}
        }});
    }})({json.dumps(NOTATIONS)})"""
    by_page = page.evaluate(read)
    page.close()
    assert dict(zip(NOTATIONS, by_page, strict=True)) == {text: by_server(text) for text in NOTATIONS}


def by_server(text: str) -> str | int:
    """The notation in its standard form, or the place of the mistake."""
    try:
        return format_ranking(parse_ranking(text, 4))
    except BadInput as error:
        place = re.search(r"place (\d+)", str(error))
        assert place is not None
        return int(place[1])
