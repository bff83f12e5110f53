"""The Models page's handlers. That scores come from the model, the browser test shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from annotate.models_page import MAX_ANSWERS, MAX_RUNS_SHOWN, MAX_TEXT_CHARS, ModelsDesk, add_answer, scores_view
from annotate.people import LocalPerson
from data.store import Store
from tests.annotate.made_runs import make_run, request_of, write

LOCAL = request_of()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def desk(workspace: Path, local: LocalPerson) -> ModelsDesk:
    return ModelsDesk(workspace, local)


def test_without_a_run_the_page_leads_to_the_train_page(desk: ModelsDesk) -> None:
    table, name, details, trial = desk.open("", LOCAL)
    assert 'href="/train"' in table
    assert (name, details, trial["visible"]) == ("", "", False)


def test_all_runs_are_listed_and_the_newest_with_a_model_is_shown(desk: ModelsDesk, workspace: Path) -> None:
    make_run(workspace, "old")
    broken = make_run(workspace, "broken", state="failed", message="x", started_at="2026-01-01T00:00:00+00:00")
    (broken / "adapter" / "adapter_config.json").unlink()
    table, name, details, trial = desk.open("", LOCAL)
    assert table.index("broken") < table.index("old")
    assert table.count("<tr>") == 3
    assert all(cell in table for cell in ("Reward model", "smollm2-135m", "2 min 5 s", "75.0%"))
    assert name == "old"
    assert "LoRA rank" in details
    assert trial["visible"]


def test_runs_that_write_are_shown_with_what_they_are_for_and_are_not_scored_with(
    desk: ModelsDesk, workspace: Path
) -> None:
    make_run(workspace, "told", stage="sft", started_at="2025-01-01T00:00:00+00:00")
    path = make_run(workspace, "preferred", stage="dpo")
    write(
        path / "config.json", {"stage": "dpo", "model": "m", "loss": "dpop", "beta": 0.1, "stop_on_displacement": True}
    )
    table, name, details, trial = desk.open("", LOCAL)
    assert "perplexity 18 → 9" in table
    assert "<td>SFT</td>" in table
    assert name == "preferred"
    assert not trial["visible"]
    assert "<dt>Method</dt><dd>DPOP: holds chosen responses up (dpop)</dd>" in details
    assert "<dt>Beta</dt><dd>0.1</dd>" in details
    assert "<dt>Stop at the alarm</dt><dd>yes</dd>" in details
    assert f"python -m train generate --model {path.resolve()} --prompts FILE" in details
    assert not desk.open("told", LOCAL)[3]["visible"]


def test_a_run_of_ppo_is_shown_with_its_judge_and_is_not_scored_with(desk: ModelsDesk, workspace: Path) -> None:
    path = make_run(workspace, "ppo-1", stage="ppo")
    table, name, details, trial = desk.open("", LOCAL)
    assert "<td>PPO</td>" in table and "reward +0.12 → +1.92" in table
    assert name == "ppo-1"
    assert not trial["visible"]
    assert "What it came to" in details
    assert "<dt>Scored by</dt><dd>rm-1</dd>" in details
    assert f"python -m train generate --model {path.resolve()} --prompts FILE" in details


def test_a_run_is_shown_by_the_name_in_the_address(desk: ModelsDesk, workspace: Path) -> None:
    make_run(workspace, "one")
    make_run(workspace, "two & more", state="failed", message="no memory")
    table, name, details, _ = desk.open("two & more", LOCAL)
    assert name == "two & more"
    assert 'href="/models?run=two%20%26%20more" aria-current="true"' in table
    assert "No memory." in details


@pytest.mark.parametrize("name", ["gone", "..", "../runs/one", "<script>"])
def test_a_name_that_is_none_is_answered_in_a_sentence(desk: ModelsDesk, workspace: Path, name: str) -> None:
    make_run(workspace, "one")
    table, shown, _, trial = desk.open(name, LOCAL)
    assert "This run is gone" in table
    assert (shown, trial["visible"]) == ("", False)


def test_a_model_card_is_shown_as_plain_text(desk: ModelsDesk, workspace: Path) -> None:
    make_run(workspace, "one")
    _, _, details, _ = desk.open("", LOCAL)
    assert "# Card &lt;script&gt;" in details
    assert "<script" not in details


def test_a_long_list_is_cut_and_says_so_but_holds_the_chosen_run(desk: ModelsDesk, workspace: Path) -> None:
    for i in range(MAX_RUNS_SHOWN + 3):
        make_run(workspace, f"run-{i:02}", started_at=f"2025-01-01T00:{i:02}:00+00:00")
    table, *_ = desk.open("run-00", LOCAL)
    assert 'run-00" aria-current="true"' in table
    assert "2 older runs" in table


@pytest.mark.parametrize(
    ("prompt", "answers", "sentence"),
    [
        (" ", ["a", "b"], "The prompt is empty"),
        ("q", ["a", " ", None], "1 answer; a comparison needs at least two"),
        ("q", ["a", "b" * (MAX_TEXT_CHARS + 1)], "the limit is 20,000"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(
    desk: ModelsDesk, workspace: Path, prompt: str, answers: list[str | None], sentence: str
) -> None:
    make_run(workspace, "one")
    assert sentence in desk.score(LOCAL, "one", prompt, *answers)


def test_scores_make_a_ranking_best_first_with_ties_and_the_labels_of_the_fields() -> None:
    view = scores_view({1: "low", 3: "<b>high</b>", 4: "low too"}, [-1.0, 2.5, -1.0])
    assert "A3&gt;A1=A4" in view
    assert view.index("&lt;b&gt;high&lt;/b&gt;") < view.index("low")
    assert "+2.500" in view
    assert "width:100.0%" in view


def test_equal_scores_are_one_tie() -> None:
    assert "A1=A2" in scores_view({1: "a", 2: "b"}, [0.5, 0.5])


def test_answers_are_added_up_to_the_last_field() -> None:
    count, *fields, button = add_answer(2)
    assert (count, [f["visible"] for f in fields], button["visible"]) == (3, [True] + [False] * 5, True)
    count, *fields, button = add_answer(MAX_ANSWERS - 1)
    assert (count, all(f["visible"] for f in fields), button["visible"]) == (MAX_ANSWERS, True, False)


def test_an_annotator_may_do_nothing_here(store: Store, workspace: Path, people: Any) -> None:
    make_run(workspace, "one")
    desk, ann = ModelsDesk(workspace, people), request_of("ann")
    assert "Only an admin" in desk.open("", ann)[0]
    assert "Only an admin" in desk.score(ann, "one", "q", "a", "b")
