"""`python -m train rm`: learn a reward model from rankings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed

from data.errors import BadInput
from data.exporting import read_dataset
from train import report, reporting
from train.configs import RmConfig
from train.files import write_json
from train.groups import Group, GroupReport, encode_records
from train.interrupt import Interrupt, Stopped
from train.layouts import Layout, choose
from train.losses import RewardLoss
from train.models import ModelSource, device, load_config, load_tokenizer, resolve, trainable_base, versions
from train.normalization import normalize_rewards
from train.progress import RunProgress
from train.reward_trainer import RewardTrainer
from train.rewards import let_signals_in, new_reward_model, row_limit
from train.run import Run, check_output, checkpoint_step, read_config

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
    with Interrupt() as interrupt:
        if config.resume is None:
            check_output(config.output)
        reporting.check(config.report_to)
        inputs = _read(config)
        run = _open_run(config, inputs)
        with run.outcome():
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


def _open_run(config: RmConfig, inputs: Inputs) -> Run:
    """A new run folder, or the one to be resumed."""
    if config.resume is None:
        return Run.create(config.output, stage="rm", config=_written(config, inputs))
    seen = read_config(config.resume).get("manifest_sha256")
    if seen != inputs.manifest_sha256:
        raise BadInput(
            f"--resume {config.resume}: {config.data} has changed since this run began. Restore it or start a new run."
        )
    return Run.reopen(config.resume, step=checkpoint_step(config.resume))


def _written(config: RmConfig, inputs: Inputs) -> dict[str, Any]:
    """What config.json holds: the flags (paths absolute, so that --resume works from anywhere) and what they led to."""
    flags = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in asdict(config).items() if k != "resume"}
    model = inputs.source.base if Path(config.model).expanduser().exists() else config.model
    return {
        **flags,
        "model": model,
        "max_length": inputs.max_length,
        "base": inputs.source.base,
        "manifest_sha256": inputs.manifest_sha256,
        "versions": versions(),
    }


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
    trainer = RewardTrainer(
        model=model,
        args=arguments_of(config, run.path, evaluates=bool(inputs.held_out)),
        layout=layout,
        objective=objective_of(config),
        tokens_per_batch=config.tokens_per_batch,
        train_dataset=inputs.train,
        held_out=inputs.held_out,
        interrupt=interrupt,
        callbacks=[RunProgress(run, interrupt), *reporting.callbacks(config.report_to, run.path)],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output, where results go
    _announce(config, inputs, model=model, layout=layout)
    step = checkpoint_step(run.path)
    try:
        trainer.train(resume_from_checkpoint=str(run.path / f"checkpoint-{step}") if step else None)
    except Stopped:
        trainer.save_now()
        raise
    _finish(config, inputs, trainer=trainer, run=run)


def objective_of(config: RmConfig) -> RewardLoss:
    """What is minimised, by the flags."""
    return RewardLoss(
        loss=config.loss,
        ties=config.ties,
        tie_strength=config.tie_strength,
        label_smoothing=config.label_smoothing,
        margin=config.margin,
        center_rewards_coefficient=config.center_rewards_coefficient,
    )


def arguments_of(config: RmConfig, output: Path, *, evaluates: bool) -> TrainingArguments:
    """Our flags as the library's."""
    arguments = TrainingArguments(
        output_dir=str(output),
        seed=config.seed,
        data_seed=config.seed,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.per_device_train_batch_size,
        bf16=config.bf16,
        use_cpu=device().type == "cpu",
        eval_strategy="steps" if evaluates and config.eval_steps else "no",
        eval_steps=config.eval_steps or None,
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        **reporting.settings(config.report_to, output),
    )
    if arguments.n_gpu > 1:  # the library would split rows between the devices, which belong together
        log.info("one of the %d CUDA devices is used", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def _announce(config: RmConfig, inputs: Inputs, *, model: nn.Module, layout: Layout) -> None:
    """Derived numbers, with their arithmetic."""
    for split, found in inputs.reports.items():
        counted = ", ".join(f"{name} {n:,}" for name, n in asdict(found).items() if n)
        log.info("%s: %s", split, counted or "no prompts")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("weights: %s trained of %s", f"{trained:,}", f"{sum(p.numel() for p in model.parameters()):,}")
    prompts, tokens = len(inputs.train), sum(layout.tokens([g]) for g in inputs.train)
    share = inputs.reports["train"].tokens_expanded / tokens
    log.info("tokens: %s; the same comparisons as pairs of rows: %.1f times as many", f"{tokens:,}", share)
    if config.tokens_per_batch:
        steps, asked = math.ceil(tokens / config.tokens_per_batch), f"{config.tokens_per_batch} tokens"
    else:
        steps = math.ceil(prompts / config.per_device_train_batch_size)
        asked = f"{config.per_device_train_batch_size} prompts"
    log.info("steps per epoch: about %d of %s, %.0f tokens each", steps, asked, tokens / steps)


def _finish(config: RmConfig, inputs: Inputs, *, trainer: RewardTrainer, run: Run) -> None:
    """Normalize, evaluate, save the adapter, write the card."""
    run.update(message="evaluating", eta_s=None)
    normalized = None
    if config.normalize:
        normalized = normalize_rewards(cast(nn.Module, trainer.model), inputs.train, trainer.layout)
    evaluation = None
    if inputs.held_out:
        evaluation = trainer.evaluation(scale=normalized.std_before if normalized else 1.0)
        evaluation.draw(run.path / "eval.png")
    else:
        log.info("no held-out prompts: nothing to evaluate on")
    found = evaluation.found if evaluation else None
    write_json(
        run.path / "eval.json",
        {
            "eval": found,
            "normalization": asdict(normalized) if normalized else None,
            "layout": type(trainer.layout).__name__,
            "groups": {split: asdict(r) for split, r in inputs.reports.items()},
            "data": str(config.data),
            "manifest_sha256": inputs.manifest_sha256,
        },
    )
    report.save_adapter(trainer.model, inputs.tokenizer, run.path / "adapter", normalized)
    report.write_card(run.path, needs_resize=report.pad_is_new(trainer.model, inputs.tokenizer))
    report.draw_curves(run.path)
    log.info("done: %s", report.in_words(found))
