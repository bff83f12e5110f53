"""Run folders as a training leaves them, made without one; and the requests that a page's handlers get."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from starlette.requests import Request

from train.checkpoints import seal

GROUPS = {"train": {"prompts": 21, "without_ranking": 4}, "eval": {"prompts": 3, "prompts_cut": 2}}

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
    "groups": GROUPS,
}

SFT_EVALUATION = {
    "eval": {
        "documents": 3,
        "tokens": 1200,
        "loss": 2.1972,
        "perplexity": 9.0,
        "start": {"loss": 2.8904, "perplexity": 18.0},
    },
    "groups": {
        "best": {"prompts": 30, "used": 24, "without_ranking": 4, "tied": 2},
        "train": {"conversations": 21, "prompts_cut": 1},
        "eval": {"conversations": 3},
    },
}

DPO_EVALUATION = {
    "eval": {
        "prompts": 3,
        "responses": 10,
        "pairs": 12,
        "ties": 1,
        "loss": 0.61,
        "accuracy": 0.75,
        "margin": 0.31,
        "chosen_log_ratio": -1.25,
        "rejected_log_ratio": -4.5,
        "chosen_log_ratio_per_token": -0.031,
        "chosen_logps": -80.0,
        "rejected_logps": -90.0,
        "start_accuracy": 0.5,
    },
    "generations": {
        "prompts": 3,
        "kl": 2.5,
        "kl_per_token": 0.05,
        "tokens": 61.0,
        "finished": 0.875,
        "start": {"tokens": 54.0, "finished": 1.0},
    },
    "displacement": {"step": None, "chosen_log_ratio_per_token": -0.031, "message": "", "stopped": False},
    "reference": {"computed": 30, "cached": 50, "forwards": 8},
    "groups": GROUPS,
}

PPO_EVALUATION = {
    "eval": {
        "prompts": 3,
        "reward": 1.92,
        "reward_std": 0.8,
        "gold": 0.71,
        "kl": 6.25,
        "kl_per_token": 0.11,
        "finished": 0.875,
        "tokens": 57.5,
        "repetition": 0.04,
        "start": {
            "prompts": 3,
            "reward": 0.12,
            "reward_std": 0.6,
            "gold": 0.4,
            "kl": 0.0,
            "kl_per_token": 0.0,
            "finished": 0.75,
            "tokens": 49.0,
            "repetition": 0.02,
        },
    },
    "samples": [
        {
            "prompt": f"Question <{i}>?",
            "start": f"Before {i}: it is <b>late</b>.",
            "end": f"After {i}: the day was long, and everyone went home happy.",
            "start_reward": -0.5 + i / 10,
            "end_reward": 1.5 + i / 10,
        }
        for i in range(4)
    ],
    "alarm": {"step": None, "message": "", "stopped": False},
    "roles": {"reward": "shared base", "critic": "copy of reward"},
    "layout": "tree",
    "prompts": {"train": 21, "eval": 3, "too_long": 2, "repeated": 1},
    "data": "/somewhere",
    "manifest_sha256": "0" * 64,
}

EVALUATIONS: dict[str, dict[str, Any]] = {
    "sft": SFT_EVALUATION,
    "rm": EVALUATION,
    "dpo": DPO_EVALUATION,
    "ppo": PPO_EVALUATION,
}


def row_of(stage: str, step: int) -> dict[str, float]:
    """A row of `metrics.jsonl` as a training writes it."""
    row = {"step": step, "loss": 1 / step, "learning_rate": 1e-4, "tokens_per_s": 900.0}
    if stage == "rm":
        row |= {"accuracy": 0.5}
    if stage == "dpo":
        row |= {"accuracy": 0.5, "margin": step / 100, "chosen_log_ratio": -step / 4, "rejected_log_ratio": -step / 2}
    if stage == "ppo":
        row |= _ppo_row(step)
    return row


def _ppo_row(step: int) -> dict[str, float]:
    """The reward rises, the divergence with it."""
    return {
        "reward": step / 10,
        "reward_std": 0.6,
        "gold": step / 20,
        "kl": step / 4,
        "kl_per_token": step / 200,
        "kl_coef": 0.05,
        "policy_loss": -0.01,
        "value_loss": 1 / step,
        "entropy": 2.5 - step / 100,
        "clip_fraction": 0.1,
        "value_clip_fraction": 0.05,
        "approx_kl": 0.01,
        "explained_variance": 1 - 4 / step,
        "finished": 0.8,
        "empty": 0.0,
        "tokens": 50.0 + step,
        "repetition": 0.03,
        "reward_length_corr": 0.1,
        "reward_short": 0.1,
        "reward_long": 0.2,
        "critic_learning_rate": 1e-4,
        "grad_norm": 0.5,
        "passes": 4,
        "rollout_tokens_per_s": 120.0,
        "scoring_tokens_per_s": 900.0,
        "update_tokens_per_s": 300.0,
        "peak_memory_mb": 900.0,
        "seconds": 3.0,
    }


def request_of(name: str = "") -> gr.Request:
    """An event sent by `name`."""
    scope = {"type": "http", "headers": [(b"x-test-person", name.encode())], "query_string": b"", "path": "/"}
    return gr.Request(request=Request(scope))


def make_run(
    workspace: Path, name: str, *, stage: str = "rm", state: str = "done", steps: int = 5, **status: Any
) -> Path:
    """A run of the demo model; a running one is at work in this very process."""
    path = workspace / "runs" / name
    (path / "adapter").mkdir(parents=True)
    (path / "adapter" / "adapter_config.json").write_text("{}")
    started = psutil.Process().create_time()
    base = {"stage": stage, "state": state, "pid": os.getpid(), "process_started": started, "step": steps}
    times = {
        "started_at": "2025-01-02T03:04:05+00:00",
        "finished_at": "" if state == "running" else "2025-01-02T03:06:10+00:00",
    }
    write(path / "status.json", {**base, "total_steps": 10, **times, **status})
    config = {"stage": stage, "model": "smollm2-135m", "lora_r": 16, "data": "/somewhere"}
    if stage == "ppo":
        config |= {"reward": "/somewhere/runs/rm-1", "gold": "", "advantage": "gae", "samples": 2}
        config |= {"kl_budget": 0.0, "kl_target": 0.0, "hacking_alarm": 5.0}
    write(path / "config.json", config)
    add_rows(path, steps, stage=stage)
    (path / "log.txt").write_text("a line <b>of</b> log\n")
    (path / "README.md").write_text("# Card <script>alert(1)</script>\n")
    if state == "done":
        write(path / "eval.json", EVALUATIONS[stage])
    return path


def add_checkpoint(path: Path, step: int = 5) -> None:
    """What a checkpoint is known by."""
    (path / f"checkpoint-{step}").mkdir()
    write(path / f"checkpoint-{step}" / "trainer_state.json", {"global_step": step})
    seal(path / f"checkpoint-{step}")


def add_rows(path: Path, count: int, *, first: int = 1, stage: str = "rm") -> None:
    """Rows of `metrics.jsonl`."""
    with (path / "metrics.jsonl").open("a") as file:
        for step in range(first, first + count):
            file.write(json.dumps(row_of(stage, step)) + "\n")


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
