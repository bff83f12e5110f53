"""People go on ranking while a model is trained: what they change is no part of the run that has begun."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from tests.train.stopping import ppo_stopped_at, stopped_at
from train.__main__ import main
from train.pass_trainer import PassTrainer
from train.ppo_update import Learner
from train.run import read_config, read_metrics, read_status

STAGES = {
    "rm": (),
    "ppo": (
        *("--reward", "tests.train.text_rewards:letters", "--samples", "2", "--max_new_tokens", "6"),
        *("--eval_prompts", "2"),
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def once_before_learning(act: Callable[[], None]) -> Any:
    """In the middle of the first step."""
    done: list[bool] = []
    compute_loss, learn = PassTrainer.compute_loss, Learner.learn

    def run_once() -> None:
        if not done:
            act()
        done.append(True)

    def of_pass(*args: Any, **options: Any) -> Any:
        run_once()
        return compute_loss(*args, **options)

    def of_ppo(*args: Any, **options: Any) -> Any:
        run_once()
        return learn(*args, **options)

    return patch.multiple(PassTrainer, compute_loss=of_pass), patch.multiple(Learner, learn=of_ppo)


def result(run: Path) -> tuple[dict[str, bytes], Any, list[float]]:
    """Weights, what was measured on held-out prompts, and each step's loss."""
    names = ("adapter", "critic")
    weights = {str(p.relative_to(run)): p.read_bytes() for n in names for p in run.glob(f"{n}/*.safetensors")}
    losses = [row["loss"] for row in read_metrics(run) if "loss" in row]
    return weights, json.loads((run / "eval.json").read_text())["eval"], losses


@pytest.mark.parametrize("stage", STAGES)
def test_rankings_that_change_during_a_run_change_nothing_in_it_and_no_resume_mixes_them(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = save_model(llama_config(), byte_tokenizer(), tmp_path / "model"), tmp_path / "ranked.jsonl"
    write_rows(data, rows())
    flags = ["--model", str(model), "--data", str(data), "--workspace", str(tmp_path), "--max_steps", "8"]
    flags += ["--per_device_train_batch_size", "4", "--save_steps", "3", "--lora_r", "4", "--learning_rate", "5e-3"]
    flags = [stage, *flags, *STAGES[stage]]
    assert main([*flags, "--output", str(tmp_path / "left")]) == 0

    def rank_others() -> None:
        """Every prompt, response and ranking is another; once more as a new file, once in the same one."""
        turned = [{**r, "prompt": f"Other {r['id']}", "responses": [t[::-1] for t in r["responses"]]} for r in rows()]
        write_rows(tmp_path / "new.jsonl", turned).replace(data)
        with data.open("a") as file:
            file.write("{half a row")

    of_pass, of_ppo = once_before_learning(rank_others)
    with of_pass, of_ppo:
        assert main([*flags, "--output", str(tmp_path / "changed")]) == 0
    assert data.read_text().endswith("{half a row"), "it was changed in the meantime"
    assert result(tmp_path / "changed") == result(tmp_path / "left")
    known = [read_config(tmp_path / name)["manifest_sha256"] for name in ("left", "changed")]
    assert known[0] == known[1]

    write_rows(data, rows())
    with (ppo_stopped_at if stage == "ppo" else stopped_at)(4):
        assert main([*flags, "--output", str(tmp_path / "stopped")]) == 143
    write_rows(data, rows(25))
    assert main([stage, "--resume", str(tmp_path / "stopped")]) == 2
    assert f"{data} has changed since this run began. Restore it or start a new run." in capsys.readouterr().err
    assert read_status(tmp_path / "stopped").state == "stopped"
    write_rows(data, rows())
    assert main([stage, "--resume", str(tmp_path / "stopped")]) == 0
    assert result(tmp_path / "stopped") == result(tmp_path / "left")
