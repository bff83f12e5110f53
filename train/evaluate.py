"""`python -m train evaluate`: a reward model on rankings, or a language model against another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from data.errors import BadInput
from data.exporting import read_dataset
from train import policy_evaluation, report
from train.command_configs import EvaluateConfig
from train.evaluation import Evaluation
from train.files import check_out_file
from train.groups import encode_records
from train.judge import gives_rewards
from train.layouts import choose
from train.models import ModelSource, device, load_config, load_tokenizer, resolve
from train.normalization import logit_scale
from train.rewards import load_reward_model, row_limit
from train.score import DEFAULT_MAX_LENGTH

_PROMPTS = {"eval": "held-out", "train": "training", "all": "overall"}
_OF_POLICIES = (
    *("judge", "against", "samples", "temperature", "top_p", "max_new_tokens", "batch_size", "seed"),
    *("prompts_limit", "out"),
)


def main(config: EvaluateConfig) -> str:
    """Measure --model, by what kind of model it is."""
    source = resolve(config.model, workspace=config.workspace)
    if not gives_rewards(source):
        return policy_evaluation.main(config, source)
    for name in _OF_POLICIES:
        value = getattr(config, name)
        if value != EvaluateConfig.__dataclass_fields__[name].default:
            raise BadInput(
                f"--{name} {value}: belongs to the evaluation of a language model, and {config.model} is a reward "
                "model. Leave it out."
            )
    return _measure_rewards(config, source)


def _measure_rewards(config: EvaluateConfig, source: ModelSource) -> str:
    """Say how well the model's rewards agree with the rankings."""
    if config.plot is not None:
        check_out_file(config.plot, flag="--plot")
    dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
    records = [r for r in dataset.records if config.split in ("all", r.split)]
    tokenizer = load_tokenizer(source)
    asked = config.max_length or source.max_length or DEFAULT_MAX_LENGTH
    groups, counted = encode_records(records, tokenizer, max_length=row_limit(load_config(source), asked=asked))
    if not groups:
        raise BadInput(
            f"{config.data}: no ranked prompt in split '{config.split}' ({counted.prompts} prompts). Try --split all."
        )
    model = load_reward_model(source, dtype=torch.bfloat16 if config.bf16 else torch.float32).to(device())
    layout = choose(model, groups, packing=config.packing, tokens_per_forward=config.tokens_per_forward)
    scale = logit_scale(source.adapter or Path(source.base))
    evaluation = Evaluation.of(model, groups, layout, scale=scale)
    if config.plot is not None:
        evaluation.draw(config.plot)
    result = {
        "eval": evaluation.found,
        "groups": asdict(counted),
        "split": config.split,
        "manifest_sha256": dataset.manifest_sha256,
    }
    return json.dumps(result) if config.json else report.in_words(evaluation.found, prompts=_PROMPTS[config.split])
