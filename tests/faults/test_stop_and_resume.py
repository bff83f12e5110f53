"""Training is stopped at every fifth step, in the middle of an epoch, and ends as if it had never been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from tests.train.stopping import ppo_stopped_at, stopped_at
from train.__main__ import main
from train.run import checkpoint_step, read_metrics, read_status

STEPS, EVERY, PROMPTS = 24, 5, 3
STAGES = {
    "rm": (),
    "sft": ("--from_rankings", "top1", "--tokens_per_batch", "350"),
    "dpo": ("--health_prompts", "0", "--displacement_alarm", "0"),
    "ppo": (
        *("--reward", "tests.train.text_rewards:letters", "--samples", "2", "--max_new_tokens", "6"),
        *("--num_ppo_epochs", "2", "--eval_prompts", "2"),
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ends(run: Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The files of the adapters that it hands over, and each step's row without what clock and memory say."""
    rows_of = [{k: v for k, v in row.items() if not of_this_process(k)} for row in read_metrics(run)]
    found = {f"{p.parent.name}/{p.name}": p for name in ("adapter", "critic") for p in run.glob(f"{name}/*")}
    return {name: p.read_bytes() for name, p in found.items()}, rows_of


def of_this_process(key: str) -> bool:
    return key in ("seconds", "peak_memory_mb") or key.endswith("tokens_per_s")


def steps_per_epoch(run: Path) -> int:
    """Of a PPO run."""
    return int(json.loads((run / "eval.json").read_text())["prompts"]["train"]) // PROMPTS


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_at_every_fifth_step_ends_bitwise_like_one_left_alone(stage: str, tmp_path: Path) -> None:
    model = save_model(llama_config(), byte_tokenizer(), tmp_path / "model")
    data = write_rows(tmp_path / "ranked.jsonl", rows())
    flags = ["--model", str(model), "--data", str(data), "--workspace", str(tmp_path), "--max_steps", str(STEPS)]
    flags += ["--per_device_train_batch_size", str(PROMPTS), "--save_steps", "1000", "--lora_r", "4", *STAGES[stage]]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([stage, *flags, "--output", str(whole)]) == 0

    stops = range(EVERY, STEPS, EVERY)
    for stop in stops:
        command = [stage, "--resume", str(stopped)] if stopped.exists() else [stage, *flags, "--output", str(stopped)]
        with (ppo_stopped_at if stage == "ppo" else stopped_at)(stop):
            assert main(command) == 143
        assert (read_status(stopped).state, checkpoint_step(stopped)) == ("stopped", stop)
    state = json.loads((stopped / f"checkpoint-{stops[-1]}" / "trainer_state.json").read_text())
    epochs = state["epoch"] if stage != "ppo" else stops[-1] / steps_per_epoch(whole)
    assert epochs > 1 and epochs % 1, "in a later epoch, not at its end"
    assert main([stage, "--resume", str(stopped)]) == 0
    assert ends(stopped) == ends(whole)
    assert {p.name for p in stopped.glob("checkpoint-*")} == {"checkpoint-20", "checkpoint-24"}
