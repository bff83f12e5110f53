"""The Inspect page's handlers, on the files that a run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annotate.inspect_page import InspectDesk
from annotate.people import LocalPerson
from tests.annotate.made_runs import make_run, request_of, write
from tests.train.made_rollouts import QUESTIONS, add_rollouts, columns, metadata
from train.rollout_files import file_of, write_rollouts

LOCAL = request_of()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def desk(workspace: Path, local: LocalPerson) -> InspectDesk:
    return InspectDesk(workspace, local)


@pytest.fixture
def run(workspace: Path) -> Path:
    """A run with three steps kept, and an older one."""
    older = make_run(workspace, "old & first", stage="ppo", started_at="2024-01-01T00:00:00+00:00")
    add_rollouts(older, 4, critic=False, gold=False)
    path = make_run(workspace, "ppo-1", stage="ppo")
    for step in (1, 2, 10):
        add_rollouts(path, step)
    return path


def opened(desk: InspectDesk, name: str = "", step: str = "", response: str = "", shade: str = "advantage") -> Any:
    return desk.open(name, step, response, shade, LOCAL)


def test_without_a_run_the_page_leads_to_the_train_page(desk: InspectDesk, workspace: Path) -> None:
    runs, steps, responses, view = opened(desk)
    assert [(u["choices"], u["value"]) for u in (runs, steps, responses)] == [([], None)] * 3
    assert "No run of PPO yet" in view and 'href="/train"' in view
    make_run(workspace, "dpo-1", stage="dpo")
    assert "No run of PPO yet" in opened(desk)[3]


def test_a_run_that_has_kept_nothing_yet_says_when_something_comes(desk: InspectDesk, workspace: Path) -> None:
    make_run(workspace, "ppo-1", stage="ppo", state="running", steps=0)
    view = opened(desk)[3]
    assert "No run of PPO has finished a step yet" in view and "--inspect_steps 0" in view


def test_the_latest_run_opens_at_its_last_step(desk: InspectDesk, run: Path) -> None:
    runs, steps, responses, view = opened(desk)
    assert (runs["choices"], runs["value"]) == (["ppo-1", "old & first"], "ppo-1")
    assert (steps["choices"], steps["value"]) == ([10, 2, 1], 10)
    assert responses["value"] == 0
    assert [value for _, value in responses["choices"]] == list(range(8))
    made = columns(seed=10)
    lengths = [made["response"].count(i) for i in range(8)]
    assert responses["choices"][1][0] == f"1: reward {made['score'][lengths[0]]:+.2f}, {lengths[1]} tokens"
    assert responses["choices"][2][0].endswith(", cut off")
    assert QUESTIONS[0] in view
    assert view.count('<span class="token') == lengths[0]


def test_what_the_address_names_is_shown(desk: InspectDesk, run: Path) -> None:
    runs, steps, responses, view = opened(desk, "ppo-1", "2", "5")
    assert (runs["value"], steps["value"], responses["value"]) == ("ppo-1", 2, 5)
    assert "What &lt;b&gt;rhymes&lt;/b&gt; with ${blue}?" in view
    assert "cut off at the longest length" in view
    made = columns(seed=2)
    at = made["response"].index(5)
    assert f"<dt>Reward</dt><dd>{made['score'][at]:+.3f}</dd>" in view
    assert f"<dt>Second judge</dt><dd>{made['gold'][at]:+.3f}, only measured</dd>" in view
    assert "each taken off with weight 0.05" in view
    assert 'href="/models?run=ppo-1"' in view


def test_a_run_without_critic_and_second_judge_is_shown_without_them(desk: InspectDesk, run: Path) -> None:
    view = opened(desk, "old & first")[3]
    assert "Second judge" not in view and "value " not in view and "None" not in view


def test_choices_lead_from_run_to_step_to_response(desk: InspectDesk, run: Path) -> None:
    runs, steps, responses, _ = desk.choose_run("old & first", "advantage", LOCAL)
    assert (runs["value"], steps["value"], responses["value"]) == ("old & first", 4, 0)
    _, steps, responses, first = desk.choose_step("ppo-1", 1, "advantage", LOCAL)
    assert (steps["value"], responses["value"]) == (1, 0)
    _, _, responses, second = desk.choose_response("ppo-1", 1, 1, "advantage", LOCAL)
    assert responses["value"] == 1
    assert first != second
    assert "KL: more likely than under the reference" in desk.choose_response("ppo-1", 1, 1, "kl", LOCAL)[3]


def test_a_running_run_says_that_more_will_come(desk: InspectDesk, workspace: Path) -> None:
    add_rollouts(make_run(workspace, "ppo-1", stage="ppo", state="running"), 1)
    assert "Reload the page for newer steps" in opened(desk)[3]


@pytest.mark.parametrize("name", ["gone", "..", "../runs/ppo-1", "<script>"])
def test_a_run_that_is_not_there_is_told_in_a_sentence(desk: InspectDesk, run: Path, name: str) -> None:
    assert "This run is gone" in opened(desk, name)[3]
    assert "This run is gone" in desk.choose_run(name, "kl", LOCAL)[3]


@pytest.mark.parametrize(
    ("step", "response", "sentence"),
    [
        (3, 0, "keeps no rollouts of step 3"),
        (-1, 0, "keeps no rollouts of step -1"),
        (1, 8, "Step 1 has 8 responses"),
        (1, -1, "Step 1 has 8 responses"),
    ],
)
def test_a_step_or_response_that_is_not_there_is_told_in_a_sentence(
    desk: InspectDesk, run: Path, step: int, response: int, sentence: str
) -> None:
    assert sentence in desk.choose_response("ppo-1", step, response, "kl", LOCAL)[3]


@pytest.mark.parametrize("sent", [None, "x", "1e9", [1], {"a": 1}, True, 1.5, "²", "9" * 40])
def test_what_is_no_number_is_as_if_nothing_was_sent(desk: InspectDesk, run: Path, sent: Any) -> None:
    assert desk.choose_response("ppo-1", sent, sent, "no such", LOCAL)[1]["value"] == 10


def test_a_damaged_file_is_told_in_a_sentence(desk: InspectDesk, run: Path) -> None:
    file_of(run, 10).write_bytes(b"PAR1")
    view = opened(desk)[3]
    assert "step-10.parquet: not readable as rollouts" in view and 'role="alert"' in view
    assert opened(desk, "ppo-1", "2")[1]["value"] == 2


def test_the_prompt_and_the_roles_in_it_stay_text(desk: InspectDesk, run: Path) -> None:
    made = {name: values[:1] for name, values in columns().items()} | {"prompt_id": ["<i>"]}
    prompt = [{"role": "<b>system", "content": "<script>alert(1)</script>"}, {"role": "user", "content": "hi"}]
    write_rollouts(file_of(run, 11), made, metadata={**metadata(step=11), "prompts": [prompt]})
    view = opened(desk)[3]
    assert "&lt;b&gt;system" in view and "&lt;script&gt;" in view and "<dd>&lt;i&gt;</dd>" in view
    assert "<script" not in view and "<b>" not in view


def test_runs_of_other_stages_are_not_offered(desk: InspectDesk, run: Path, workspace: Path) -> None:
    make_run(workspace, "rm-1", started_at="2026-01-01T00:00:00+00:00")
    assert opened(desk)[0]["choices"] == ["ppo-1", "old & first"]


def test_a_folder_without_a_status_is_no_run(desk: InspectDesk, run: Path, workspace: Path) -> None:
    add_rollouts(workspace / "runs" / "stray", 1)
    assert "stray" not in opened(desk)[0]["choices"]
    write(workspace / "runs" / "stray" / "status.json", json.loads((run / "status.json").read_text()))
    assert "stray" in opened(desk)[0]["choices"]


def test_an_annotator_sees_nothing_here(workspace: Path, run: Path, people: Any) -> None:
    desk, ann = InspectDesk(workspace, people), request_of("ann")
    for answer in (
        desk.open("ppo-1", "", "", "kl", ann),
        desk.choose_run("ppo-1", "kl", ann),
        desk.choose_step("ppo-1", 1, "kl", ann),
        desk.choose_response("ppo-1", 1, 0, "kl", ann),
    ):
        assert "Only an admin" in answer[3]
        assert "token" not in answer[3] and "ppo-1" not in str(answer)
