"""Training processes as the web pages see them: real children, no torch in this one's part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.errors import BadInput, Conflict, NotFound, UserError
from data.records import Message
from train import jobs
from train.run import Run, read_status

ASK = (Message("user", "Say number 1."),)


def wait_until(condition, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def ended(path: Path) -> bool:
    return jobs.read_run(path).status.state != "running"


@pytest.fixture
def endless(tiny: Path, ranked: Path) -> dict[str, object]:
    """Settings of a training that would take hours."""
    return {"model": str(tiny), "data": ranked, "max_steps": 1_000_000, "logging_steps": 1, "lora_r": 2}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A workspace; what still runs in it at the end is stopped."""
    yield tmp_path
    for run in jobs.list_runs(tmp_path):
        jobs.stop(run.path, grace_s=0.1)


def test_a_job_runs_to_its_end_is_listed_and_scores(tiny: Path, ranked: Path, workspace: Path) -> None:
    run = jobs.start("rm", {"model": str(tiny), "data": ranked, "max_steps": 3}, workspace=workspace, name="first")
    assert (run.name, run.status.state, run.config["max_steps"]) == ("first", "running", 3)
    wait_until(lambda: ended(run.path))
    (listed,) = jobs.list_runs(workspace)
    assert (listed.status.state, listed.has_adapter) == ("done", True), jobs.log_tail(run.path)
    assert listed.evaluation is not None
    assert [row["step"] for row in jobs.metrics(run.path) if "loss" in row] == [1, 2, 3]
    assert "step 3/3" in jobs.log_tail(run.path)
    assert jobs.log_tail(run.path).count("step 3/3  loss") == 1
    child = run.status.pid
    wait_until(lambda: not psutil.pid_exists(child))  # reaped, no zombie

    found = jobs.score_job(str(run.path), ASK, ["It is 1!!!", "It is 1"], workspace=workspace)
    assert len(found) == 2
    with pytest.raises(UserError, match="no scores within 0 seconds"):
        jobs.score_job(str(run.path), ASK, ["a"], workspace=workspace, timeout_s=0.05)


def test_one_job_at_a_time_stop_saves_a_checkpoint_and_resume_goes_on(endless: dict, workspace: Path) -> None:
    run = jobs.start("rm", endless, workspace=workspace)
    with pytest.raises(Conflict, match=f"^{run.name} is still running; one job at a time"):
        jobs.start("rm", endless, workspace=workspace)
    assert [r.name for r in jobs.list_runs(workspace)] == [run.name]
    wait_until(lambda: len(jobs.metrics(run.path)) >= 3)
    status = jobs.stop(run.path, grace_s=30)
    assert (status.state, status.message) == ("stopped", "stopped by SIGTERM")
    assert list(run.path.glob("checkpoint-*/trainer_state.json"))
    steps = status.step

    wait_until(lambda: not psutil.pid_exists(status.pid))
    again = jobs.resume(run.path, workspace=workspace)
    assert again.status.state == "running"
    wait_until(lambda: len(jobs.metrics(run.path)) > steps + 1)
    with pytest.raises(Conflict, match="is running already"):
        jobs.resume(run.path, workspace=workspace)
    jobs.stop(run.path, grace_s=30)


def test_a_killed_job_has_failed_and_its_lock_is_free(endless: dict, workspace: Path) -> None:
    run = jobs.start("rm", endless, workspace=workspace)
    os.kill(run.status.pid, 9)
    wait_until(lambda: read_status(run.path).state == "failed")
    assert read_status(run.path).message == "the process ended unexpectedly (exit -9); see log.txt"
    second = jobs.start("rm", endless, workspace=workspace, name="second")
    assert second.status.state == "running"


def test_a_stop_by_force_is_no_failure(endless: dict, workspace: Path) -> None:
    run = jobs.start("rm", endless, workspace=workspace)
    process = psutil.Process(run.status.pid)
    process.suspend()  # deaf to SIGTERM
    status = jobs.stop(run.path, grace_s=0.2)
    assert (status.state, status.message) == ("stopped", "stopped by force, before it could save a checkpoint")
    time.sleep(0.2)
    assert read_status(run.path).state == "stopped"


def test_a_child_that_refuses_its_input_leaves_its_sentence(tiny: Path, tmp_path: Path, workspace: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "Hi", "responses": ["a", "b"], "ranking": "A1>A9"}\n')
    run = jobs.start("rm", {"model": str(tiny), "data": data}, workspace=workspace)
    wait_until(lambda: read_status(run.path).state == "failed")
    assert "data.jsonl:1: ranking 'A1>A9', place 4: A9 does not exist" in read_status(run.path).message


def test_impossible_settings_are_refused_before_anything_starts(tiny: Path, ranked: Path, workspace: Path) -> None:
    good = {"model": str(tiny), "data": ranked}
    for stage, args, sentence in (
        ("score", good, "'score' is no training stage"),
        ("rm", {**good, "lora_r": 0}, "--lora_r 0: must be 1 or more"),
        ("rm", {**good, "magic": 1}, "rm has no setting 'magic'"),
    ):
        with pytest.raises(BadInput, match=sentence):
            jobs.start(stage, args, workspace=workspace)
    with pytest.raises(NotFound, match="there is no such file or folder"):
        jobs.start("rm", {**good, "data": workspace / "none"}, workspace=workspace)
    for name in ("../out", ".hidden", "a/b", "x" * 200):
        with pytest.raises(BadInput, match="run name"):
            jobs.start("rm", good, workspace=workspace, name=name)
    assert jobs.list_runs(workspace) == []


def test_a_restarted_server_finds_the_running_job_and_can_stop_it(endless: dict, workspace: Path) -> None:
    settings = {**endless, "data": str(endless["data"])}
    code = (
        "import json, os, sys, pathlib; from train import jobs\n"
        "run = jobs.start('rm', json.loads(sys.argv[1]), workspace=pathlib.Path(sys.argv[2]))\n"
        "os._exit(0)"  # as a server that was killed
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(settings), str(workspace)], check=True)
    (run,) = jobs.list_runs(workspace)
    assert run.status.state == "running"
    with pytest.raises(Conflict):
        jobs.start("rm", endless, workspace=workspace)
    wait_until(lambda: bool(jobs.metrics(run.path)))
    assert jobs.stop(run.path, grace_s=30).state == "stopped"


def test_metrics_are_thinned_but_ends_and_evaluations_stay(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", stage="rm", config={})
    for step in range(1, 101):
        run.record({"step": step, "loss": 1.0})
        if step % 50 == 0:
            run.record({"step": step, "eval_loss": 1.0})
    rows = jobs.metrics(run.path, max_points=10)
    training = [row["step"] for row in rows if "loss" in row]
    assert (len(training), training[0], training[-1]) == (10, 1, 100)
    assert [row["step"] for row in rows if "eval_loss" in row] == [50, 100]
    assert len(jobs.metrics(run.path)) == 102


def test_the_log_tail_is_whole_lines(tmp_path: Path) -> None:
    assert jobs.log_tail(tmp_path) == ""
    (tmp_path / "log.txt").write_text("".join(f"line {i}\n" for i in range(100)))
    assert jobs.log_tail(tmp_path, max_bytes=20) == "line 98\nline 99\n"


def test_a_score_job_passes_on_the_childs_sentence(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"1,000,001 characters; at most"):
        jobs.score_job("any", ASK, ["x" * 1_000_001], workspace=workspace)
