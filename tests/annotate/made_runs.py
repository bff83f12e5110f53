"""Run folders as a training leaves them, made without one; and the requests that a page's handlers get."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from starlette.requests import Request

EVALUATION = {
    "eval": {
        "prompts": 3,
        "responses": 10,
        "pairs": 12,
        "ties": 1,
        "loss": 0.5,
        "accuracy": 0.75,
        "top1": 0.6,
        "scored_ties": 0,
        "longer_wins": {"accuracy": 0.5, "top1": 0.4, "scored_ties": 2},
    },
    "groups": {"train": {"prompts": 21, "without_ranking": 4}, "eval": {"prompts": 3, "prompts_cut": 2}},
}


def request_of(name: str = "") -> gr.Request:
    """An event sent by `name`."""
    scope = {"type": "http", "headers": [(b"x-test-person", name.encode())], "query_string": b"", "path": "/"}
    return gr.Request(request=Request(scope))


def make_run(workspace: Path, name: str, *, state: str = "done", steps: int = 5, **status: Any) -> Path:
    """A run of the demo model; a running one is at work in this very process."""
    path = workspace / "runs" / name
    (path / "adapter").mkdir(parents=True)
    (path / "adapter" / "adapter_config.json").write_text("{}")
    started = psutil.Process().create_time()
    base = {"stage": "rm", "state": state, "pid": os.getpid(), "process_started": started, "step": steps}
    times = {
        "started_at": "2025-01-02T03:04:05+00:00",
        "finished_at": "" if state == "running" else "2025-01-02T03:06:10+00:00",
    }
    write(path / "status.json", {**base, "total_steps": 10, **times, **status})
    write(path / "config.json", {"stage": "rm", "model": "smollm2-135m", "lora_r": 16, "data": "/somewhere"})
    add_rows(path, steps)
    (path / "log.txt").write_text("a line <b>of</b> log\n")
    (path / "README.md").write_text("# Card <script>alert(1)</script>\n")
    if state == "done":
        write(path / "eval.json", EVALUATION)
    return path


def add_checkpoint(path: Path, step: int = 5) -> None:
    """What a checkpoint is known by."""
    (path / f"checkpoint-{step}").mkdir()
    write(path / f"checkpoint-{step}" / "trainer_state.json", {"global_step": step})


def add_rows(path: Path, count: int, *, first: int = 1) -> None:
    """Rows of `metrics.jsonl`."""
    with (path / "metrics.jsonl").open("a") as file:
        for step in range(first, first + count):
            file.write(json.dumps({"step": step, "loss": 1 / step, "accuracy": 0.5}) + "\n")


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
