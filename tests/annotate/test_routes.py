"""The ranking page's routes: every decision stored once, every mistake one sentence and nothing stored."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from fastapi.testclient import TestClient

from annotate.routes import MAX_ID
from data.entities import Project
from data.records import read_record
from data.store import Store


def test_a_task_is_blind(visitor: Any) -> None:
    assert "secret" not in json.dumps(visitor.view)
    assert len(visitor.task["cards"]) == 3
    assert visitor.task["messages"][0]["role"] == "user"


def test_guidelines_and_prompts_arrive_rendered(visitor: Any) -> None:
    assert visitor.view["project"]["guidelines"] == "<p>Be <strong>fair</strong>.</p>\n"
    assert visitor.task["messages"][0]["html"] == "<p>Question 1?</p>\n"


def test_a_ranking_is_stored_in_file_order_and_the_next_task_comes(visitor: Any, rankings: Any) -> None:
    cards = visitor.task["cards"]
    answer = visitor.submit(ranking="A2>A1>A3", seconds=12.5, comment="close")
    assert answer.json()["receipt"]["ranking"] == "A2>A1>A3"
    assert visitor.task["messages"][0]["html"] == "<p>Question 2?</p>\n"
    assert visitor.view["progress"] == {"total": 3, "ranked": 1, "skipped": 0, "flagged": 0, "left": 2}
    (stored,) = rankings()
    texts = ["<p>one 1</p>\n", "<p>two 1</p>\n", "<p>three 1</p>\n"]
    best_first = [texts[tier[0] - 1] for tier in stored.ranking.tiers]
    assert best_first == [cards[1], cards[0], cards[2]]
    assert (stored.seconds, stored.comment, stored.annotator) == (12.5, "close", "lin")


def test_a_partial_ranking_is_stored_as_it_was_given(visitor: Any, rankings: Any) -> None:
    assert visitor.submit(ranking="A2>A1").json()["receipt"]["ranking"] == "A2>A1"
    assert len(rankings()[0].ranking.ranks) == 2


def test_the_same_key_twice_is_one_ranking(visitor: Any, rankings: Any) -> None:
    first = dict(visitor.task)
    same = {"prompt": first["prompt"], "revision": first["revision"], "key": secrets.token_hex(8)}
    answers = [visitor.submit(**same).json()["receipt"] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(rankings()) == 1


def test_a_second_tab_is_told_that_it_came_late(visitor: Any, rankings: Any) -> None:
    shown = {"prompt": visitor.task["prompt"], "revision": visitor.task["revision"]}
    assert visitor.submit(**shown).status_code == 200
    late = visitor.submit(**shown, ranking="A3>A1")
    assert late.status_code == 409
    assert "another tab" in late.json()["detail"]
    assert [str(r.revision) for r in rankings()] == ["1"]


def test_undo_brings_the_ranking_back_as_a_draft(visitor: Any, rankings: Any) -> None:
    prompt = visitor.task["prompt"]
    visitor.submit(ranking="A3>A1=A2|", comment="hm")
    view = visitor.undo()
    assert view["undone"] is True
    assert (view["task"]["prompt"], view["task"]["draft"], view["task"]["comment"]) == (prompt, "A3>A1=A2|", "hm")
    assert rankings() == []
    assert visitor.undo()["undone"] is False


def test_skip_and_flag_keep_their_reasons(visitor: Any, store: Store, project: Project) -> None:
    assert visitor.submit(status="skipped", ranking="", reason="too long").status_code == 200
    assert visitor.submit(status="flagged", ranking="").status_code == 400
    assert visitor.submit(status="flagged", ranking="", reason="harmful").status_code == 200
    aside = [s for record in store.records(project.id) for s in record.set_aside]
    assert [(s.status, s.reason) for s in aside] == [("skipped", "too long"), ("flagged", "harmful")]


def test_nothing_left_is_an_empty_task(visitor: Any) -> None:
    for _ in range(3):
        visitor.submit()
    assert visitor.task is None
    assert visitor.view["progress"]["left"] == 0


def test_a_draft_waits_for_the_next_visit(visitor: Any, client: TestClient, project: Project) -> None:
    draft = {"project": project.id, "prompt": visitor.task["prompt"], "ranking": "A2>A", "comment": "wip"}
    assert client.post("/api/draft", json=draft).json() == {"saved": True}
    again = client.get("/api/task", params={"project": project.id}).json()["task"]
    assert (again["draft"], again["comment"]) == ("A2>A", "wip")


def test_history_leads_back_to_an_earlier_answer(visitor: Any, client: TestClient, project: Project) -> None:
    prompt = visitor.task["prompt"]
    visitor.submit(ranking="A1>A2")
    (entry,) = client.get("/api/history", params={"project": project.id}).json()["entries"]
    assert (entry["prompt"], entry["status"], entry["ranking"], entry["text"]) == (
        prompt,
        "ranked",
        "A1>A2",
        "Question 1?",
    )
    reopened = client.get("/api/task", params={"project": project.id, "prompt": prompt}).json()["task"]
    assert (reopened["revision"], reopened["status"], reopened["draft"]) == (1, "ranked", "A1>A2")


def test_projects_are_listed(client: TestClient, project: Project) -> None:
    assert client.get("/api/projects").json() == {"projects": [{"id": project.id, "name": "demo"}]}


def test_a_prompt_of_another_project_is_not_found(visitor: Any, store: Store) -> None:
    other = store.create_project("other")
    row = {"prompt": "Elsewhere?", "responses": ["a", "b"]}
    store.add_prompts(other.id, [read_record(row, where="test")])
    assert visitor.submit(project=other.id).status_code == 404


@pytest.mark.parametrize(
    ("ranking", "words"),
    [
        ("A1>A9", "A9 does not exist"),
        ("A1>A1", "appears twice"),
        ("", "empty"),
        ("A1|A2|A3", "second bar"),
        ("A2", "alone"),
    ],
)
def test_a_bad_ranking_is_refused_with_place_and_rule(visitor: Any, rankings: Any, ranking: str, words: str) -> None:
    answer = visitor.submit(ranking=ranking)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]
    assert rankings() == []


@pytest.mark.parametrize(
    "change",
    [
        {"project": True},
        {"project": "1"},
        {"project": 1.5},
        {"prompt": 0},
        {"prompt": -1},
        {"prompt": MAX_ID + 1},
        {"prompt": 10**40},
        {"revision": None},
        {"revision": -1},
        {"key": "short"},
        {"key": "a" * 65},
        {"key": "no spaces"},
        {"status": "withdrawn"},
        {"status": ["ranked"]},
        {"ranking": {"A1": 1}},
        {"ranking": "A1>" * 400},
        {"seconds": "12"},
        {"seconds": -1},
        {"seconds": 1e300},
        {"comment": "x" * 10_001},
        {"comment": "nul\x00"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_strange_field_is_one_sentence_and_stores_nothing(
    visitor: Any, rankings: Any, change: dict[str, Any]
) -> None:
    answer = visitor.submit(**change)
    assert answer.status_code in (400, 404, 422), answer.text
    assert isinstance(answer.json()["detail"], str)
    assert rankings() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"project":1,"key":"abcdefgh","prompt":1,"revision":0,"status":"ranked","seconds":NaN}',
        b'{"project":1,"key":"abcdefgh","prompt":1,"revision":0,"status":"ranked","seconds":Infinity}',
        b'{"project":1,"key":"abcdefgh","prompt":1,"revision":0,"status":"ranked","comment":"\\ud800"}',
        b'{"project":1' + b"0" * 6000 + b"}",
    ],
    ids=lambda body: body[:30],
)
def test_a_strange_body_is_one_sentence(client: TestClient, rankings: Any, body: bytes) -> None:
    answer = client.post("/api/submit", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert isinstance(answer.json()["detail"], str)
    assert rankings() == []


@pytest.mark.parametrize("query", ["", "?project=x", "?project=0", "?project=99999999999", "?project=1&prompt=nan"])
def test_a_strange_query_is_one_sentence(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/task{query}")
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


def test_an_unknown_project_is_not_found(client: TestClient) -> None:
    assert client.get("/api/task?project=999").status_code == 404
    assert client.post("/api/undo", json={"project": 999, "key": "abcdefgh"}).status_code == 404
