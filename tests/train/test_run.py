"""The run folder: what is written, what is believed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data.errors import BadInput, NotFound
from train.checkpoints import seal
from train.files import write_json
from train.interrupt import Interrupt, Stopped
from train.run import Run, checkpoint_step, observed_status, read_metrics, read_status


def create(path: Path) -> Run:
    return Run.create(path, stage="rm", config={"seed": 1})


def test_a_new_run_says_who_is_at_work(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    status = observed_status(run.path)
    assert (status.state, status.pid, status.alive) == ("running", os.getpid(), True)
    assert json.loads((run.path / "config.json").read_text()) == {"stage": "rm", "seed": 1}


def test_the_outcome_is_written_whatever_it_is(tmp_path: Path) -> None:
    run = create(tmp_path / "done")
    with run.outcome():
        run.update(step=3, eta_s=2.0)
    status = read_status(run.path)
    assert (status.state, status.step, status.eta_s) == ("done", 3, None)

    run = create(tmp_path / "bad")
    with pytest.raises(BadInput), run.outcome():
        raise BadInput("a sentence.")
    assert (read_status(run.path).state, read_status(run.path).message) == ("failed", "a sentence.")
    assert "a sentence." in (run.path / "log.txt").read_text()

    run = create(tmp_path / "broken")
    with pytest.raises(ZeroDivisionError), run.outcome():
        _ = 1 / 0
    assert read_status(run.path).message == "ZeroDivisionError: division by zero; see log.txt"
    assert "Traceback" in (run.path / "log.txt").read_text()

    run = create(tmp_path / "stopped")
    with pytest.raises(Stopped), run.outcome():
        raise Stopped(15)
    assert (read_status(run.path).state, read_status(run.path).message) == ("stopped", "stopped by SIGTERM")


def test_a_run_whose_process_is_gone_has_failed(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.update(process_started=run.status.process_started - 60)  # the pid now belongs to another process
    status = observed_status(run.path)
    assert (status.state, status.message) == ("failed", "the process ended unexpectedly; see log.txt")
    assert read_status(run.path).state == "running"


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="the folder is not empty; a run starts in a new one"):
        create(tmp_path)
    with pytest.raises(BadInput, match="this is a file"):
        create(tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(NotFound, match="no run here"):
        read_status(tmp_path)


def test_half_a_row_of_metrics_is_not_read(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.record({"step": 1, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(run.path) == [{"step": 1, "loss": 0.5}]


def test_reopening_drops_what_will_be_measured_again_and_refuses_a_living_run(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for step in (1, 2, 3):
        run.record({"step": step, "loss": 0.5})
    other = psutil.Process(os.getppid())
    own = run.status
    run.update(pid=other.pid, process_started=other.create_time())
    with pytest.raises(BadInput, match="is still at work on it"):
        Run.reopen(run.path, step=2)
    run.update(pid=own.pid, process_started=own.process_started)
    started = "2026-01-01T00:00:00+00:00"
    run.update(started_at=started, total_steps=9)
    run.finish("stopped")
    again = Run.reopen(run.path, step=2)
    assert [row["step"] for row in read_metrics(run.path)] == [1, 2]
    assert (again.status.step, again.status.total_steps, again.status.started_at) == (2, 9, started)


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert checkpoint_step(tmp_path) == 0
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text('{"global_step": 5}')
        seal(tmp_path / f"checkpoint-{step}")
    assert checkpoint_step(tmp_path) == 10


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_a_signal_breaks_in_at_once_but_waits_while_a_step_is_applied() -> None:
    with Interrupt() as interrupt, pytest.raises(Stopped, match="SIGTERM"):
        os.kill(os.getpid(), 15)
    with Interrupt() as interrupt:
        interrupt.hold()
        os.kill(os.getpid(), 2)
        with pytest.raises(Stopped) as stopped:
            interrupt.release()
    assert stopped.value.exit_code == 130


def test_an_unknown_field_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    value = json.loads((run.path / "status.json").read_text())
    write_json(run.path / "status.json", {**value, "mood": "good"})
    assert read_status(run.path) == replace(run.status)
