"""The training core on a CUDA device: the same rewards as on the CPU, and a run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.train import families
from tests.train.families import FAMILIES, reward_model
from tests.train.test_layouts import made_groups
from tests.train.test_ppo import train as train_ppo
from train.__main__ import main
from train.layouts import PaddedRows, TreeRows, choose, score_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_rows_on_the_device_give_the_rewards_of_padded_rows_on_the_cpu(family: str, folder: Path) -> None:
    model, groups = reward_model(families.folder(family, folder), dtype=torch.float32).eval(), made_groups()
    expected = dict(score_groups(model, groups, PaddedRows(4096)))
    model.to("cuda")
    assert isinstance(choose(model, groups, packing="auto", tokens_per_forward=4096), TreeRows)
    found = dict(score_groups(model, groups, TreeRows(4096)))
    for i, own in expected.items():
        assert found[i] == pytest.approx(own, abs=2e-3)


@pytest.mark.parametrize("flags", [[], ["--bf16"], ["--bf16", "--load_in_4bit", "--gradient_checkpointing"]])
def test_a_run_trains_on_the_device(flags: list[str], tiny: Path, ranked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    learning = ["--learning_rate", "5e-3", "--max_steps", "20"]
    assert main(["rm", "--model", str(tiny), "--data", str(ranked), "--output", str(run), *learning, *flags]) == 0
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["layout"] == "TreeRows"
    assert evaluation["eval"]["accuracy"] > 0.8


@pytest.mark.parametrize("flags", [[], ["--bf16"], ["--bf16", "--load_in_4bit", "--gradient_checkpointing"]])
def test_ppo_raises_the_reward_on_the_device(flags: list[str], tiny: Path, ranked: Path, tmp_path: Path) -> None:
    assert train_ppo(tiny, ranked, tmp_path / "run", "--max_steps", "30", "--samples", "8", *flags) == 0
    found = json.loads((tmp_path / "run" / "eval.json").read_text())["eval"]
    assert found["reward"] > found["start"]["reward"] + 1
