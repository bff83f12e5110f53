"""Training is stopped at every fifth step, in the middle of an epoch, and ends as if it had never been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from tests.train.stopping import stopped_at
from train.__main__ import main
from train.run import checkpoint_step, read_metrics, read_status

STEPS, EVERY = 24, 5
STAGES = {
    "rm": (),
    "sft": ("--from_rankings", "top1", "--tokens_per_batch", "350"),
    "dpo": ("--health_prompts", "0", "--displacement_alarm", "0"),
}
CLOCK = ("seconds", "tokens_per_s")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ends(run: Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The adapter's files, and each step's row without what a clock says."""
    rows_of = [{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(run)]
    return {p.name: p.read_bytes() for p in (run / "adapter").iterdir()}, rows_of


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_at_every_fifth_step_ends_bitwise_like_one_left_alone(stage: str, tmp_path: Path) -> None:
    model = save_model(llama_config(), byte_tokenizer(), tmp_path / "model")
    data = write_rows(tmp_path / "ranked.jsonl", rows())
    flags = ["--model", str(model), "--data", str(data), "--workspace", str(tmp_path), "--max_steps", str(STEPS)]
    flags += ["--per_device_train_batch_size", "3", "--save_steps", "1000", "--lora_r", "4", *STAGES[stage]]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([stage, *flags, "--output", str(whole)]) == 0

    stops = range(EVERY, STEPS, EVERY)
    for stop in stops:
        command = [stage, "--resume", str(stopped)] if stopped.exists() else [stage, *flags, "--output", str(stopped)]
        with stopped_at(stop):
            assert main(command) == 143
        assert (read_status(stopped).state, checkpoint_step(stopped)) == ("stopped", stop)
    epochs = json.loads((stopped / f"checkpoint-{stops[-1]}" / "trainer_state.json").read_text())["epoch"]
    assert epochs > 1 and epochs % 1, "in a later epoch, not at its end"
    assert main([stage, "--resume", str(stopped)]) == 0
    assert ends(stopped) == ends(whole)
    assert {p.name for p in stopped.glob("checkpoint-*")} == {"checkpoint-20", "checkpoint-24"}
