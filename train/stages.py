"""The commands of `python -m train`. Free of torch."""

from __future__ import annotations

from typing import Any, NamedTuple

from train.command_configs import EvaluateConfig, GenerateConfig, InspectConfig, MergeConfig, ScoreConfig
from train.configs import DpoConfig, RmConfig, SftConfig
from train.ppo_config import PpoConfig


class Stage(NamedTuple):
    """A command of `python -m train`: its settings, and the module whose `main(config)` returns what to print."""

    config: type[Any]
    module: str


STAGES = {
    "sft": Stage(SftConfig, "train.sft"),
    "rm": Stage(RmConfig, "train.rm"),
    "dpo": Stage(DpoConfig, "train.dpo"),
    "ppo": Stage(PpoConfig, "train.ppo"),
    "inspect": Stage(InspectConfig, "train.inspect_rollouts"),
    "score": Stage(ScoreConfig, "train.score"),
    "evaluate": Stage(EvaluateConfig, "train.evaluate"),
    "generate": Stage(GenerateConfig, "train.generate"),
    "merge": Stage(MergeConfig, "train.merge"),
}
