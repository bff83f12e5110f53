"""PPO in two processes, and with a server that writes: the same update as alone, and what the server is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.lora_server import LoraServer, running
from tests.train.made import rows, write_rows
from tests.train.test_processes import train_in_two
from train.__main__ import main
from train.rollout_files import file_of, read_rollouts
from train.run import read_evaluation, read_metrics, read_status

SETTINGS = {
    "reward": "tests.train.text_rewards:letters",
    "gold": "tests.train.text_rewards:words",
    "learning_rate": "5e-3",
    "lora_r": "4",
    "max_new_tokens": "10",
    "samples": "2",
    "num_ppo_epochs": "2",
    "num_mini_batches": "2",
    "max_steps": "3",
    "eval_fraction": "0.2",
    "eval_prompts": "5",
    "kl_target": "1",
    "kl_horizon": "50",
    "tokens_per_forward": "150",
    "max_length": "200",
}
TIMES = "seconds", "tokens_per_s", "peak_memory_mb"


def flags(model: Path, data: Path, output: Path, **changes: Any) -> list[str]:
    where = {"model": model, "data": data, "output": output, "workspace": f"{output}-workspace"}
    settings = {**where, **SETTINGS, **changes}
    return ["ppo", *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]


@pytest.mark.parametrize("advantage", ["gae", "grpo"])
def test_two_processes_learn_what_one_does_with_the_same_prompts_a_step(
    advantage: str, tiny: Path, tmp_path: Path
) -> None:
    data, own = write_rows(tmp_path / "ranked.jsonl", rows(30)), tmp_path
    one = flags(tiny, data, own / "one", advantage=advantage, per_device_train_batch_size=8)
    assert main(one) == 0
    two = flags(tiny, data, own / "two", advantage=advantage, per_device_train_batch_size=4)
    assert train_in_two(own / "log", *two) == 0, (own / "log").read_text()

    for name in ("adapter", *(["critic"] if advantage == "gae" else [])):
        ours, theirs = (load_file(own / run / name / "adapter_model.safetensors") for run in ("two", "one"))
        mine, expected = (torch.cat([v.flatten() for v in found.values()]) for found in (ours, theirs))
        assert (mine - expected).norm() <= 1e-4 * expected.norm()
        assert any(v.abs().max() > 1e-3 for k, v in theirs.items() if "lora_B" in k), "they are 0 at the start"
    both = [
        [{k: v for k, v in row.items() if not any(t in k for t in TIMES)} for row in read_metrics(own / run)]
        for run in ("two", "one")
    ]
    for row, same in zip(*both, strict=True):
        assert row.keys() == same.keys()
        for name, value in row.items():
            assert value == pytest.approx(same[name], rel=1e-3, abs=1e-4), (row["step"], name)
    for step in (1, 2, 3):
        ours_frame, theirs_frame = (read_rollouts(file_of(own / run, step)).frame for run in ("two", "one"))
        assert (ours_frame["token_id"] == theirs_frame["token_id"]).all()
        assert (ours_frame["response"] == theirs_frame["response"]).all()
    found, expected_found = (read_evaluation(own / run) for run in ("two", "one"))
    assert found is not None and expected_found is not None
    assert [s["end"] for s in found["samples"]] == [s["end"] for s in expected_found["samples"]]
    assert (own / "two" / "log.txt").read_text().count("step 1/3") == 1


def test_a_server_writes_with_the_adapter_as_it_is_at_every_step(tiny: Path, tmp_path: Path) -> None:
    """What it wrote is learned from by log-probs computed here, and the reward rises."""
    data = write_rows(tmp_path / "ranked.jsonl", rows(30))
    changes = {
        "max_steps": 12,
        "learning_rate": "2e-2",
        "kl_target": 0,
        "kl_coef": 0.01,
        "per_device_train_batch_size": 8,
    }
    with running(LoraServer(tiny)) as server:
        asked = flags(tiny, data, tmp_path / "run", rollout_engine="vllm", rollout_url=server.url, **changes)
        assert main([*asked, "--samples", "4", "--num_ppo_epochs", "4"]) == 0
    found = read_evaluation(tmp_path / "run")
    assert found is not None and found["eval"]["reward"] > found["eval"]["start"]["reward"] + 0.5
    measured = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert measured[0]["kl"] == 0 < measured[-1]["kl"]
    frame = read_rollouts(file_of(tmp_path / "run", 12)).frame
    assert (frame["ratio"] != 1).any()


def test_no_server_is_a_sentence(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "ranked.jsonl", rows(30))
    asked = flags(tiny, data, tmp_path / "run", rollout_engine="vllm", rollout_url="http://127.0.0.1:9/v1")
    assert main([*asked, "--per_device_train_batch_size", "4"]) == 2
    assert read_status(tmp_path / "run").state == "failed"
    assert "http://127.0.0.1:9" in capsys.readouterr().err
