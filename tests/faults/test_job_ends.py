"""How jobs end and keep out of each other's way, as the server sees it: killed, out of memory, started twice."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import Conflict
from tests.conftest import ROOT
from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from train import jobs
from train.checkpoints import newest_good
from train.run import checkpoint_step, read_status

SEEN_WITHIN_S = 5.0
"""A job's end must show this soon."""
START_TIMEOUT_S = 120.0
SECOND_SERVER = """
import json, pathlib, sys
from data.errors import Conflict
from train import jobs
sys.stdin.readline()
try:
    print(jobs.start("rm", json.loads(sys.argv[1]), workspace=pathlib.Path(sys.argv[2]), name=sys.argv[3]).name)
except Conflict as conflict:
    print(conflict)
"""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a training that would take hours."""
    folder = tmp_path_factory.mktemp("inputs")
    model = save_model(llama_config(), byte_tokenizer(), folder / "model")
    data = write_rows(folder / "ranked.jsonl", rows())
    return {"model": str(model), "data": str(data), "max_steps": 1_000_000, "save_steps": 2, "lora_r": 2}


@pytest.fixture(scope="module")
def hungry(endless: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same with steps that need some hundred megabytes and give them back."""
    long = [{**row, "responses": [text + " so" * 100 for text in row["responses"]]} for row in rows()]
    data = write_rows(tmp_path_factory.mktemp("long") / "ranked.jsonl", long)
    whole_step = {"per_device_train_batch_size": 24, "packing": "padded", "tokens_per_forward": 100_000}
    return {**endless, **whole_step, "data": str(data), "eval_fraction": 0.0, "save_steps": 1}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A workspace; what still runs in it at the end is stopped."""
    yield tmp_path
    for run in jobs.list_runs(tmp_path):
        jobs.stop(run.path, grace_s=0.1)


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_job_that_is_killed_or_stopped_is_seen_within_seconds_and_can_go_on(
    endless: dict[str, Any], workspace: Path
) -> None:
    run = jobs.start("rm", endless, workspace=workspace, name="first")
    for number, state, told in (
        (signal.SIGKILL, "failed", "the process ended unexpectedly (exit -9); see log.txt"),
        (signal.SIGTERM, "stopped", "stopped by SIGTERM"),
    ):
        before = len(jobs.metrics(run.path))
        wait_until(lambda before=before: len(jobs.metrics(run.path)) > before + 3, START_TIMEOUT_S)
        pid = read_status(run.path).pid
        os.kill(pid, number)
        wait_until(lambda: read_status(run.path).state != "running", SEEN_WITHIN_S)
        found = jobs.read_run(run.path)
        assert (found.status.state, found.status.message, found.can_resume) == (state, told, True)
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), SEEN_WITHIN_S)  # and with it all memory of the device
        assert jobs.resume(run.path, workspace=workspace).status.state == "running"


@pytest.mark.slow
def test_a_job_that_runs_out_of_memory_has_failed_with_the_remedy_and_its_checkpoint_is_good(
    hungry: dict[str, Any], workspace: Path
) -> None:
    """As `ulimit -v` does it: what it has it keeps, and gets no more."""
    run = jobs.start("rm", hungry, workspace=workspace, name="first")
    wait_until(lambda: checkpoint_step(run.path), START_TIMEOUT_S)
    resource.prlimit(read_status(run.path).pid, resource.RLIMIT_AS, (1, 1))
    wait_until(lambda: read_status(run.path).state != "running", START_TIMEOUT_S)
    found = jobs.read_run(run.path)
    assert found.status.state == "failed"
    assert found.status.message.startswith("out of memory")
    assert "Start a new run with --tokens_per_forward below 100,000" in found.status.message
    assert found.can_resume
    assert newest_good(run.path)


@pytest.mark.slow
def test_of_two_servers_on_one_workspace_that_start_a_job_at_once_one_is_told_of_the_other(
    endless: dict[str, Any], workspace: Path
) -> None:
    servers = {
        name: subprocess.Popen(
            [sys.executable, "-c", SECOND_SERVER, json.dumps(endless), str(workspace), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("left", "right")
    }
    for server in servers.values():
        assert server.stdin
        server.stdin.write("now\n")
        server.stdin.flush()
    said = {name: server.communicate()[0].strip() for name, server in servers.items()}
    assert [server.returncode for server in servers.values()] == [0, 0]
    (running,) = [r for r in jobs.list_runs(workspace) if r.status.state == "running"]
    (other,) = {"left", "right"} - {running.name}
    assert said[running.name] == running.name
    assert said[other].endswith("is still running; one job at a time. Wait for it or stop it.")
    assert len(jobs.list_runs(workspace)) == 1
    with pytest.raises(Conflict):
        jobs.start("rm", endless, workspace=workspace)
