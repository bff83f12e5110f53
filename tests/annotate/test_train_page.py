"""The Train page's handlers. That a started run really learns, the browser test shows."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import gradio as gr
import pytest

from annotate.exports import export_for
from annotate.material import material_of
from annotate.people import LocalPerson
from annotate.run_view import STAGES, evaluation_view, in_words
from annotate.train_page import DEMO_MODEL, SHOWN, TrainDesk
from annotate.train_settings import FINISHED_RUNS, FIXED, SETTINGS, Choice, FinishedRun, Number, default_of
from annotate.train_settings import in_words as settings_in_words
from data.entities import Project
from data.records import read_record
from data.splits import EVAL, split_of
from data.store import Store
from tests.annotate.made_runs import EVALUATION, add_checkpoint, add_rows, make_run, request_of
from train import jobs, stages

LOCAL = request_of()
VIEW, LOG, STOP, CONTINUE, QUESTION, START, TIMER, NAME, SEEN, MODELS, REWARD, GOLD = range(SHOWN)


def values(**changes: Any) -> list[Any]:
    """What the page sends: the settings of all stages; `changes` by stage and name, as in `dpo_beta`."""
    sent = {f"{stage}_{s.name}": default_of(stage, s.name) for stage in SETTINGS for s in SETTINGS[stage]}
    assert set(changes) <= set(sent), changes
    return list((sent | changes).values())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def desk(store: Store, workspace: Path, local: LocalPerson) -> TrainDesk:
    return TrainDesk(store, workspace, local)


@pytest.fixture
def ranked(store: Store, project: Project) -> Project:
    """The three prompts of `project` wait; these twenty are ranked, one tie and one unranked response in each."""
    rows = [
        {"id": f"r{i}", "prompt": f"Rank {i}", "responses": list("wxyz"), "annotator": "ann", "ranking": "A2>A1=A3"}
        for i in range(20)
    ]
    store.add_prompts(project.id, [read_record(row, where="test") for row in rows])
    return project


@pytest.fixture
def barred(store: Store) -> Project:
    """Twenty prompts with a bar behind two of three responses, and three whose best response is behind it."""
    project = store.create_project("barred", guidelines="")
    rankings = ["A2>A1|A3"] * 20 + ["|A1>A2"] * 3
    rows = [
        {"id": f"b{i}", "prompt": f"Rank {i}", "responses": list("xyz"), "annotator": "ann", "ranking": ranking}
        for i, ranking in enumerate(rankings)
    ]
    store.add_prompts(project.id, [read_record(row, where="test") for row in rows])
    return project


def start(desk: TrainDesk, project: object, **changes: Any) -> str:
    """The sentence that refuses a start."""
    asked = {"stage": "rm", "model": DEMO_MODEL, "percent": 10.0, "values": values(), "request": LOCAL} | changes
    message, *shown = desk.start(
        asked["request"], project, asked["percent"], asked["stage"], asked["model"], *asked["values"]
    )
    assert len(shown) == SHOWN
    return str(message)


def material(desk: TrainDesk, project: object, *, stage: str = "rm", percent: float = 10, **changes: Any) -> str:
    """What the page says a run would see."""
    return desk.material(LOCAL, project, percent, stage, *values(**changes))


def test_the_settings_are_those_of_training_and_say_what_they_do() -> None:
    assert set(SETTINGS) == set(FIXED) == set(STAGES) <= set(stages.STAGES)
    for stage, settings in SETTINGS.items():
        fields = {field.name: field for field in dataclasses.fields(stages.STAGES[stage].config)}
        assert {*(s.name for s in settings), *FIXED[stage]} <= set(fields)
        assert all(s.info and "\n" not in s.info for s in settings)
        assert all(default_of(stage, s.name) == s.read(default_of(stage, s.name)) for s in settings)
        assert len({s.name for s in settings}) == len(settings)


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_choice_offers_what_training_knows_and_nothing_else(stage: str) -> None:
    kinds = get_type_hints(stages.STAGES[stage].config)
    for setting in SETTINGS[stage]:
        if isinstance(setting, Choice):
            assert {value for _, value in setting.options} == set(get_args(kinds[setting.name]))
        if isinstance(setting, Number):
            assert kinds[setting.name] is (int if setting.whole else float)


def test_a_start_asks_training_for_what_the_page_shows(
    store: Store, workspace: Path, local: LocalPerson, ranked: Project
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def launch(stage: str, args: dict[str, Any], *, workspace: Path) -> jobs.RunInfo:
        asked.append((stage, args))
        return jobs.read_run(make_run(workspace, f"made-{stage}", stage=stage))

    desk = TrainDesk(store, workspace, local, launch=launch)
    assert start(desk, ranked.id, stage="sft", values=values(sft_max_steps=7, dpo_max_steps=8)) == ""
    assert start(desk, ranked.id, stage="dpo", values=values(dpo_loss="dpop", dpo_stop_on_displacement=True)) == ""
    assert [stage for stage, _ in asked] == ["sft", "dpo"]
    sft, dpo = (args for _, args in asked)
    assert {"stage": "chat", "from_rankings": "top1", "max_steps": 7, "tokens_per_batch": 4096}.items() <= sft.items()
    assert "loss" not in sft
    assert {"loss": "dpop", "stop_on_displacement": True, "max_steps": 0, "learning_rate": 5e-5}.items() <= dpo.items()
    assert "from_rankings" not in dpo
    assert [(Path(args["data"]) / "rankings.jsonl").exists() for _, args in asked] == [True, True]


def test_the_page_says_what_a_run_would_see(desk: TrainDesk, store: Store, ranked: Project) -> None:
    records = list(store.records(ranked.id))
    held_out = sum(split_of(r, 0.1) == EVAL for r in records if r.rankings)
    shown = material(desk, ranked.id)
    assert f"{2 * (20 - held_out)} pairs of {20 - held_out} prompts" in shown
    assert "20, used as ties" in shown
    assert "60, left out: nobody compared them" in shown
    assert "3, left out" in shown


def test_what_a_run_would_see_is_what_the_export_holds(store: Store, ranked: Project, workspace: Path) -> None:
    found = material_of(store.records(ranked.id), eval_fraction=0.3)
    manifest = export_for(store, ranked, workspace=workspace, formats=["trl"], eval_fraction=0.3).manifest
    splits, left_out = manifest["splits"], manifest["pairs"]["left_out"]
    assert (found.learned.pairs, found.held_out.pairs) == (splits["train"]["pairs"], splits["eval"]["pairs"])
    assert (found.ties, found.unranked) == (left_out["tie"], left_out["unranked"])


def test_votes_that_come_together_are_one_pair(store: Store, project: Project) -> None:
    rankings = [{"annotator": name, "ranking": "A1>A2"} for name in ("ann", "bo")]
    store.add_prompts(
        project.id, [read_record({"prompt": "Vote", "responses": ["a", "b"], "rankings": rankings}, where="test")]
    )
    each, soft = (material_of(store.records(project.id), eval_fraction=0, soft=soft) for soft in (False, True))
    assert (each.learned.pairs, soft.learned.pairs) == (2, 1)


def test_ties_that_are_dropped_are_said_to_be_left_out(desk: TrainDesk, ranked: Project) -> None:
    assert "20, left out, as chosen" in material(desk, ranked.id, rm_ties="drop")
    assert "20, used as ties" in material(desk, ranked.id, stage="dpo", rm_ties="drop")


def test_sft_is_told_how_many_prompts_have_a_best_response(desk: TrainDesk, store: Store, barred: Project) -> None:
    shown = material(desk, barred.id, stage="sft", percent=0)
    assert "20 best responses, one a prompt" in shown
    assert "3, left out: even the best is unacceptable" in shown
    found = material_of(store.records(barred.id), eval_fraction=0.3)
    assert found.learned.best + found.held_out.best == 20


def test_kto_is_told_what_stands_before_and_behind_the_bar(desk: TrainDesk, barred: Project) -> None:
    shown = material(desk, barred.id, stage="dpo", percent=0, dpo_loss="kto")
    assert "40 responses before the acceptable bar, 26 behind it" in shown
    assert "warning" not in shown


def test_kto_is_refused_where_nobody_set_a_bar(desk: TrainDesk, ranked: Project, workspace: Path) -> None:
    assert "No ranking has an acceptable bar" in material(desk, ranked.id, stage="dpo", dpo_loss="kto")
    assert "No ranking has an acceptable bar" in start(desk, ranked.id, stage="dpo", values=values(dpo_loss="kto"))
    assert not (workspace / "exports").exists()


def test_kto_is_warned_where_all_stand_on_one_side_and_told_what_is_disputed(
    desk: TrainDesk, store: Store, project: Project
) -> None:
    rows = [{"id": "one", "prompt": "One", "responses": ["a", "b"], "annotator": "ann", "ranking": "A1>A2|"}]
    store.add_prompts(project.id, [read_record(row, where="test") for row in rows])
    assert "All of them stand before the bar" in material(desk, project.id, stage="dpo", percent=0, dpo_loss="kto")
    rankings = [{"annotator": "ann", "ranking": "A1|A2"}, {"annotator": "bo", "ranking": "|A1>A2"}]
    row = {"id": "two", "prompt": "Two", "responses": ["a", "b"], "rankings": rankings}
    store.add_prompts(project.id, [read_record(row, where="test")])
    shown = material(desk, project.id, stage="dpo", percent=0, dpo_loss="kto")
    assert "2 responses before the acceptable bar, 1 behind it, 1 on both sides" in shown


def test_a_project_without_a_ranking_cannot_be_trained_on(desk: TrainDesk, project: Project, workspace: Path) -> None:
    for stage in ("sft", "rm", "dpo"):
        assert "Rank prompts" in material(desk, project.id, stage=stage)
        assert "nothing to learn from" in start(desk, project.id, stage=stage)
    assert not (workspace / "exports").exists()


def test_a_project_whose_ranked_prompts_are_all_held_out_cannot_be_trained_on(
    desk: TrainDesk, store: Store, project: Project
) -> None:
    rows = [{"prompt": f"Held {i}", "responses": ["a", "b"], "ranking": "A1>A2"} for i in range(50)]
    record = next(r for row in rows if split_of(r := read_record(row, where="test"), 0.1) == EVAL)
    store.add_prompts(project.id, [dataclasses.replace(record, id="held")])
    assert "Lower the share held out" in start(desk, project.id)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": " "}, "Base model is empty"),
        ({"model": None}, "Base model is empty"),
        ({"values": values(rm_num_train_epochs=None)}, "Epochs is empty"),
        ({"values": values(rm_lora_r=0)}, "--lora_r 0: must be 1 or more"),
        ({"stage": "dpo", "values": values(dpo_beta=0)}, "--beta 0.0: must be more than 0"),
        ({"stage": "dpo", "values": values(dpo_loss="best")}, "Method: this is none of the choices"),
        ({"stage": "dpo", "values": values(dpo_loss="plackett_luce", dpo_ties="drop")}, "--ties drop"),
        (
            {"stage": "ppo", "values": values(ppo_per_device_train_batch_size=4)},
            "PPO learns from the scores of a reward model",
        ),
        ({"stage": "ppo", "values": values(ppo_reward="json:loads")}, "Scored by: this is no finished run"),
        ({"stage": "ppo", "values": values(ppo_reward="/etc")}, "Scored by: this is no finished run"),
        ({"stage": "ppo", "values": values(ppo_gold="json:loads")}, "Second judge: this is no finished run"),
        ({"percent": 80.0}, "the share is 0 to 50 %"),
        ({"stage": "score"}, "no training stage"),
    ],
)
def test_an_impossible_start_is_refused_in_a_sentence(
    desk: TrainDesk, ranked: Project, workspace: Path, changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in start(desk, ranked.id, **changes)
    assert not list((workspace / "runs").glob("*/status.json"))


@pytest.mark.parametrize("sent", [None, 99, "1"])
def test_a_project_that_is_none_is_refused(desk: TrainDesk, project: Project, sent: object) -> None:
    assert 'role="alert"' in start(desk, sent)


def test_one_run_at_a_time(desk: TrainDesk, ranked: Project, workspace: Path) -> None:
    make_run(workspace, "busy", state="running")
    assert "&#x27;busy&#x27; is still running" in start(desk, ranked.id)
    assert not (workspace / "exports").exists()


def test_without_a_project_the_page_leads_to_the_data_page(desk: TrainDesk) -> None:
    projects, *shown = desk.open(LOCAL)
    assert projects["value"] is None
    assert 'href="/data"' in material(desk, None)
    assert shown[MODELS]["choices"] == [(DEMO_MODEL, DEMO_MODEL)]
    assert "No run yet" in shown[VIEW]
    assert not shown[TIMER]["active"]


def test_model_folders_of_the_workspace_are_offered(desk: TrainDesk, workspace: Path) -> None:
    for name in (DEMO_MODEL, "mine", ".unfinished", "merged-0123456789abcdef"):
        (workspace / "models" / name).mkdir(parents=True)
        (workspace / "models" / name / "config.json").write_text("{}")
    models = desk.open(LOCAL)[1:][MODELS]
    assert models["choices"] == [(DEMO_MODEL, DEMO_MODEL), ("mine", str((workspace / "models/mine").resolve()))]


def test_finished_sft_runs_are_offered_as_soon_as_they_end(desk: TrainDesk, workspace: Path) -> None:
    for stage, state in (("sft", "stopped"), ("rm", "done"), ("dpo", "done")):
        make_run(workspace, f"{stage}-{state}", stage=stage, state=state)
    path = make_run(workspace, "sft-1", stage="sft", state="running")
    assert "choices" not in desk.tick("sft-1", "", LOCAL)[MODELS], "a list that changes each second closes"
    shutil.rmtree(path)
    make_run(workspace, "sft-1", stage="sft")
    assert desk.tick("sft-1", "", LOCAL)[MODELS]["choices"][1:] == [("sft-1, from SFT", str(path.resolve()))]


def test_a_page_that_opens_finds_the_running_run(desk: TrainDesk, workspace: Path) -> None:
    make_run(workspace, "running", state="running", eta_s=75.0)
    make_run(workspace, "newer", started_at="2026-01-01T00:00:00+00:00")
    view, log, stop, more, question, begin, timer, name, *_ = desk.open(LOCAL)[1:]
    assert name == "running"
    assert "Step 5 of 10" in view
    assert "about 1 min 15 s left" in view
    assert "<svg" in view
    assert log == "a line <b>of</b> log\n"
    assert stop["visible"]
    assert not more["visible"]
    assert "visible" not in question, "a tick must not close the question"
    assert not begin["interactive"]
    assert timer["active"]


def test_a_tick_brings_nothing_when_nothing_changed(desk: TrainDesk, workspace: Path) -> None:
    path = make_run(workspace, "r", state="running")
    first = desk.tick("r", "", LOCAL)
    assert desk.tick("r", first[SEEN], LOCAL) == gr.skip()
    add_rows(path, 1, first=6)
    second = desk.tick("r", first[SEEN], LOCAL)
    assert second[SEEN] != first[SEEN]
    assert desk.tick("r", second[SEEN], LOCAL) == gr.skip()


def test_a_run_whose_process_died_is_shown_as_failed_and_can_be_continued(desk: TrainDesk, workspace: Path) -> None:
    add_checkpoint(make_run(workspace, "r", state="running", process_started=1.0))
    shown = desk.tick("r", "", LOCAL)
    assert "ended unexpectedly" in shown[VIEW]
    assert shown[CONTINUE]["visible"]
    assert not shown[TIMER]["active"]


def test_a_finished_run_shows_its_evaluation_and_stops_the_timer(desk: TrainDesk, workspace: Path) -> None:
    make_run(workspace, "a&b")
    view, _, stop, _, _, begin, timer, *_ = desk.open(LOCAL)[1:]
    assert "a&amp;b" in view
    assert "75.0%" in view
    assert "50.0%" in view
    assert "10 steps in 2 min 5 s" in view
    assert 'href="/models?run=a%26b"' in view
    assert (stop["visible"], begin["interactive"], timer["active"]) == (False, True, False)


def test_only_a_run_with_a_checkpoint_can_be_continued(desk: TrainDesk, workspace: Path) -> None:
    path = make_run(workspace, "r", state="failed", message="no such model")
    assert not desk.tick("r", "", LOCAL)[CONTINUE]["visible"]
    assert "no checkpoint to continue from" in desk.resume("r", LOCAL)[0]
    add_checkpoint(path)
    assert desk.tick("r", "", LOCAL)[CONTINUE]["visible"]


@pytest.mark.parametrize("name", ["gone", "", "..", "../runs/r", "/etc"])
def test_a_run_that_is_not_there_empties_the_panel(desk: TrainDesk, workspace: Path, name: str) -> None:
    make_run(workspace, "r")
    shown = desk.tick(name, "", LOCAL)
    assert "No run yet" in shown[VIEW]
    assert not shown[TIMER]["active"]
    assert "This run is gone" in desk.stop(name, LOCAL)[0]


def test_an_annotator_may_do_nothing_here(store: Store, workspace: Path, people: Any, ranked: Project) -> None:
    make_run(workspace, "r", state="running")
    desk, ann = TrainDesk(store, workspace, people), request_of("ann")
    for stage in SETTINGS:
        assert "no admin" in desk.material(ann, ranked.id, 10, stage, *values())
        assert "no admin" in start(desk, ranked.id, stage=stage, request=ann)
    assert "Only an admin" in desk.stop("r", ann)[0]
    assert "Only an admin" in desk.resume("r", ann)[0]
    assert "status" in {p.stem for p in (workspace / "runs/r").iterdir()}


@pytest.fixture
def judge(workspace: Path) -> str:
    """A finished reward model, as the page names it."""
    return str(make_run(workspace, "rm-1").resolve())


def test_ppo_is_told_how_many_different_prompts_there_are(
    desk: TrainDesk, store: Store, ranked: Project, judge: str
) -> None:
    again = read_record({"id": "again", "prompt": "Rank 3", "responses": ["a", "b"]}, where="test")
    store.add_prompts(ranked.id, [again])
    shown = material(desk, ranked.id, stage="ppo", percent=0, ppo_reward=judge)
    assert "23 prompts, ranked or not" in shown  # three of them wait
    assert "1, left out: the same prompt is there already" in shown
    assert "warning" not in shown
    found = material_of(store.records(ranked.id), eval_fraction=0.3)
    assert found.learned.different + found.held_out.different == 23


def test_ppo_without_a_reward_model_says_what_to_do(desk: TrainDesk, ranked: Project) -> None:
    assert "choose a finished one under Scored by, or train one first" in material(desk, ranked.id, stage="ppo")


def test_ppo_is_refused_where_a_step_has_too_few_prompts(
    desk: TrainDesk, project: Project, workspace: Path, judge: str
) -> None:
    words = "A step takes 16 different prompts and there are 3 to learn from."
    assert words in material(desk, project.id, stage="ppo", percent=0, ppo_reward=judge)
    assert words in start(desk, project.id, stage="ppo", percent=0.0, values=values(ppo_reward=judge))
    assert not (workspace / "exports").exists()
    enough = material(desk, project.id, stage="ppo", percent=0, ppo_reward=judge, ppo_per_device_train_batch_size=3)
    assert "warning" not in enough


def test_ppo_without_a_prompt_leads_to_the_data_page(desk: TrainDesk, store: Store, judge: str) -> None:
    empty = store.create_project("empty", guidelines="")
    assert 'href="/data"' in material(desk, empty.id, stage="ppo", ppo_reward=judge)
    assert "nothing to learn from" in start(desk, empty.id, stage="ppo", values=values(ppo_reward=judge))


def test_ppo_starts_with_the_reward_model_that_was_chosen(
    store: Store, workspace: Path, local: LocalPerson, project: Project, judge: str
) -> None:
    asked: list[dict[str, Any]] = []

    def launch(stage: str, args: dict[str, Any], *, workspace: Path) -> jobs.RunInfo:
        assert stage == "ppo"
        asked.append(args)
        return jobs.read_run(make_run(workspace, "made", stage=stage))

    desk = TrainDesk(store, workspace, local, launch=launch)
    changes = {"ppo_per_device_train_batch_size": 3, "ppo_advantage": "rloo", "ppo_kl_budget": 4.0}
    sent = values(ppo_reward=judge, **changes)
    assert start(desk, project.id, stage="ppo", percent=0.0, values=sent) == ""
    expected = {"reward": judge, "gold": "", "advantage": "rloo", "kl_budget": 4.0, "learning_rate": 3e-5, "samples": 2}
    assert expected.items() <= asked[0].items()
    records = (Path(asked[0]["data"]) / "rankings.jsonl").read_text().splitlines()
    assert len(records) == 3, "prompts that nobody ranked are there too"


def test_training_s_own_rules_for_ppo_are_told_before_anything_is_written(
    desk: TrainDesk, project: Project, workspace: Path, judge: str
) -> None:
    sent = values(ppo_reward=judge, ppo_per_device_train_batch_size=3, ppo_advantage="grpo", ppo_samples=1)
    assert "--advantage grpo with --samples 1" in start(desk, project.id, stage="ppo", percent=0.0, values=sent)
    assert not (workspace / "exports").exists()


def test_finished_reward_models_are_offered_the_newest_chosen(desk: TrainDesk, workspace: Path, judge: str) -> None:
    newer = make_run(workspace, "rm-2", started_at="2026-01-01T00:00:00+00:00")
    make_run(workspace, "rm-3", state="failed", started_at="2026-01-02T00:00:00+00:00")
    make_run(workspace, "dpo-1", stage="dpo")
    shown = desk.open(LOCAL)[1:]
    offered = [("rm-2, 75.0% of pairs", str(newer.resolve())), ("rm-1, 75.0% of pairs", judge)]
    assert (shown[REWARD]["choices"], shown[REWARD]["value"]) == (offered, str(newer.resolve()))
    assert shown[GOLD]["choices"] == [("None", ""), *offered]
    assert "value" not in shown[GOLD], "a second judge is chosen by hand"


def test_a_reward_model_that_has_just_finished_is_chosen(desk: TrainDesk, workspace: Path, judge: str) -> None:
    shutil.rmtree(judge)
    path = make_run(workspace, "rm-1", state="running")
    assert "choices" not in desk.tick("rm-1", "", LOCAL)[REWARD], "a list that changes each second closes"
    shutil.rmtree(path)
    make_run(workspace, "rm-1")
    make_run(workspace, "dpo-1", stage="dpo")
    assert desk.tick("rm-1", "", LOCAL)[REWARD]["value"] == judge
    assert "value" not in desk.tick("dpo-1", "", LOCAL)[REWARD], "what a person chose stays"


def test_a_finished_run_is_named_in_the_settings_of_a_run() -> None:
    words = dict(settings_in_words("ppo", {"reward": "/ws/runs/rm <1>", "gold": "", "advantage": "gae"}))
    assert words == {"Scored by": "rm <1>", "Second judge": "none", "Method": "PPO: what a critic expected (gae)"}
    assert dict(settings_in_words("ppo", {"reward": "my.judge:score"})) == {"Scored by": "my.judge:score"}


def test_only_runs_are_chosen_from_a_list_that_changes() -> None:
    assert [(stage, setting.name) for stage, setting in FINISHED_RUNS] == [("ppo", "reward"), ("ppo", "gold")]
    assert all(setting.stage in STAGES for _, setting in FINISHED_RUNS)
    assert FinishedRun("x", "X", "i", stage="rm").read(["no text"]) == ""


def test_an_evaluation_without_held_out_pairs_says_so() -> None:
    assert "nothing to measure it on" in evaluation_view({"eval": None, "groups": {}})
    assert "nothing to measure it on" in evaluation_view({"eval": {**EVALUATION["eval"], "accuracy": None}})


def test_an_evaluation_names_what_was_left_out() -> None:
    shown = evaluation_view(EVALUATION)
    assert "<dt>Prompts nobody ranked</dt><dd>4 to train on, 0 held out</dd>" in shown
    assert "<dt>Prompts that lost their start</dt><dd>0 to train on, 2 held out</dd>" in shown
    assert "agrees with people more often than" in shown


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
