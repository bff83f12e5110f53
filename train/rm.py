"""`python -m train rm`: learn a reward model from rankings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from data.errors import BadInput
from data.exporting import read_dataset
from train import report, reporting
from train.checkpoints import full_disk_told
from train.configs import RmConfig
from train.files import write_json
from train.groups import Group, GroupReport, encode_records
from train.interrupt import Interrupt
from train.layouts import choose
from train.losses import RewardLoss
from train.memory import out_of_memory_told
from train.models import ModelSource, device, load_config, load_tokenizer, resolve, trainable_base
from train.normalization import normalize_rewards
from train.pass_trainer import PassTrainer
from train.processes import ending_together, is_main, joined
from train.reward_objective import RewardObjective
from train.rewards import let_signals_in, new_reward_model, row_limit
from train.run import Run, check_output
from train.training import announce_counts, announce_saving, announce_size, new_trainer, open_run, train_to_end

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """All that training needs, read and checked before the run folder is made."""

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    train: list[Group]
    held_out: list[Group]
    reports: Mapping[str, GroupReport]
    manifest_sha256: str
    max_length: int


def main(config: RmConfig) -> str:
    """Train, evaluate and save; returns the run folder."""
    with Interrupt() as interrupt, joined():
        if config.resume is None:
            check_output(config.output)
        reporting.check(config.report_to)
        inputs = _read(config)
        found = {"manifest_sha256": inputs.manifest_sha256, "max_length": inputs.max_length}
        run = open_run(config, stage="rm", source=inputs.source, found=found)
        with run.outcome(), ending_together(), out_of_memory_told(config), full_disk_told(run.path):
            _train(config, inputs, run=run, interrupt=interrupt)
    return str(config.output)


def _read(config: RmConfig) -> Inputs:
    """Data first (it is read in a moment), then the model. Raises UserError."""
    dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
    source = trainable_base(resolve(config.model, workspace=config.workspace), config.workspace)
    tokenizer = load_tokenizer(source)
    max_length = row_limit(load_config(source), asked=config.max_length)
    groups, reports = {}, {}
    for split in ("train", "eval"):
        records = [r for r in dataset.records if r.split == split]
        groups[split], reports[split] = encode_records(
            records, tokenizer, max_length=max_length, soft=config.votes == "soft", ties=config.ties != "drop"
        )
    if not groups["train"]:
        ties = reports["train"].ties_dropped
        if ties:
            raise BadInput(f"{config.data}: all {ties} comparisons are ties, which --ties drop leaves out. Keep them.")
        raise BadInput(
            f"{config.data}: no prompt with a ranking to learn from: of {reports['train'].prompts} prompts, "
            f"{reports['train'].without_ranking} have no ranking and {reports['train'].without_comparison} rank fewer "
            "than two responses. Rank some, then export again."
        )
    return Inputs(
        source=source,
        tokenizer=tokenizer,
        train=groups["train"],
        held_out=groups["eval"],
        reports=reports,
        manifest_sha256=dataset.manifest_sha256,
        max_length=max_length,
    )


def _train(config: RmConfig, inputs: Inputs, *, run: Run, interrupt: Interrupt) -> None:
    set_seed(config.seed)
    model = new_reward_model(
        inputs.source,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        load_in_4bit=config.load_in_4bit,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    let_signals_in(model)
    layout = choose(
        model.to(device()),
        [*inputs.train, *inputs.held_out],
        packing=config.packing,
        tokens_per_forward=config.tokens_per_forward,
    )
    objective = RewardObjective(loss_of(config), layout, held_out=inputs.held_out)
    evaluates = bool(inputs.held_out)
    trainer = new_trainer(
        config, model, objective, run=run, interrupt=interrupt, groups=inputs.train, evaluates=evaluates
    )
    announce_counts(inputs.reports)
    announce_size(config, model, layout, inputs.train, noun="prompts")
    announce_saving(layout, inputs.train, inputs.reports["train"])
    train_to_end(trainer, run)
    _finish(config, inputs, trainer=trainer, objective=objective, run=run)


def loss_of(config: RmConfig) -> RewardLoss:
    """What is minimised, by the flags."""
    return RewardLoss(
        loss=config.loss,
        ties=config.ties,
        tie_strength=config.tie_strength,
        label_smoothing=config.label_smoothing,
        margin=config.margin,
        center_rewards_coefficient=config.center_rewards_coefficient,
    )


def _finish(config: RmConfig, inputs: Inputs, *, trainer: PassTrainer, objective: RewardObjective, run: Run) -> None:
    """Normalize, evaluate, save the adapter, write the card: all of it in the main process."""
    run.update(message="evaluating", eta_s=None)
    normalized = None
    if config.normalize and is_main():
        normalized = normalize_rewards(cast(nn.Module, trainer.model), inputs.train, objective.layout)
        objective.scale = normalized.std_before if normalized else 1.0
    if inputs.held_out:
        trainer.evaluate()
    else:
        log.info("no held-out prompts: nothing to evaluate on")
    if not is_main():
        return
    evaluation = objective.latest if inputs.held_out else None
    if evaluation:
        evaluation.draw(run.path / "eval.png")
    found = evaluation.found if evaluation else None
    write_json(
        run.path / "eval.json",
        {
            "eval": found,
            "normalization": asdict(normalized) if normalized else None,
            "layout": type(objective.layout).__name__,
            "groups": {split: asdict(r) for split, r in inputs.reports.items()},
            "data": str(config.data),
            "manifest_sha256": inputs.manifest_sha256,
        },
    )
    report.save_adapter(trainer.model, inputs.tokenizer, run.path / "adapter", normalized)
    report.write_card(run.path, needs_resize=report.pad_is_new(trainer.model, inputs.tokenizer))
    report.draw_curves(run.path)
    log.info("done: %s", report.in_words(found))
