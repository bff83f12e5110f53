"""What every training does around its own steps: settings, the run folder, the trainer's life."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from data.errors import BadInput
from train import reporting
from train.checkpoints import good_to_resume, newest_good, step_of
from train.configs import TrainingConfig
from train.groups import Group, GroupReport
from train.interrupt import Interrupt, Stopped
from train.layouts import Layout
from train.models import ModelSource, device, versions
from train.pass_trainer import Objective, PassTrainer
from train.processes import barrier, join, on_main, world_size
from train.progress import Alarm, RunProgress
from train.run import Run, read_config, read_metrics

log = logging.getLogger(__name__)


def open_run(config: TrainingConfig, *, stage: str, source: ModelSource, found: Mapping[str, Any]) -> Run:
    """A new run folder, or the one to be resumed.

    `found`: what the flags led to, for config.json. What of it is a sha256 must be the same in a resumed run, and so
    must the number of processes. Raises BadInput where it is not.
    """
    join()
    barrier()  # all have seen that the folder is free
    made: list[Run] = []
    on_main(lambda: made.append(_open(config, stage=stage, source=source, found=found)))
    return made[0] if made else Run.follow(config.resume or config.output)


def _open(config: TrainingConfig, *, stage: str, source: ModelSource, found: Mapping[str, Any]) -> Run:
    if config.resume is None:
        return Run.create(config.output, stage=stage, config=_written(config, source, found))
    before = read_config(config.resume)
    for name, value in found.items():
        if name.endswith("_sha256") and before.get(name) != value:
            what = _named(name.removesuffix("_sha256"), config)
            raise BadInput(
                f"--resume {config.resume}: {what} has changed since this run began. Restore it or start a new run."
            )
    if before.get("processes", 1) != world_size():
        raise BadInput(
            f"--resume {config.resume}: the run was started with {before.get('processes', 1)} processes, this is "
            f"{world_size()}; a step would have other prompts. Start as many again."
        )
    return Run.reopen(config.resume, step=step_of(good_to_resume(config.resume)))


def _named(what: str, config: TrainingConfig) -> str:
    """What has a sha256 in config.json, as the user knows it."""
    if what in ("reward", "gold"):
        return f"--{what} {getattr(config, what)}"
    return str(config.data) if what == "manifest" else f"the {what} of {config.model}"


def _written(config: TrainingConfig, source: ModelSource, found: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds: the flags (paths absolute, so that --resume works from anywhere) and what they led to.

    `model` is the base that the result stands on, `start` what was asked for: of a run, its folder.
    """
    flags = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in asdict(config).items() if k != "resume"}
    for name in ("reward", "gold"):
        if flags.get(name) and (place := Path(str(flags[name])).expanduser()).exists():
            flags[name] = str(place.resolve())
    asked = Path(config.model).expanduser()
    model = source.base if asked.exists() else config.model
    start = str(asked.resolve()) if asked.exists() else config.model
    came_from = {"model": model, "base": source.base, "start": start}
    return {**flags, **came_from, **found, "processes": world_size(), "versions": versions()}


def new_trainer(
    config: TrainingConfig,
    model: nn.Module,
    objective: Objective,
    *,
    run: Run,
    interrupt: Interrupt,
    groups: Sequence[Group],
    evaluates: bool,
    alarm: Alarm | None = None,
) -> PassTrainer:
    """The trainer of these settings, its progress told to the run."""
    trainer = PassTrainer(
        model=model,
        args=arguments_of(config, run.path, evaluates=evaluates),
        objective=objective,
        evaluates=evaluates,
        tokens_per_batch=config.tokens_per_batch,
        train_dataset=groups,
        interrupt=interrupt,
        callbacks=[RunProgress(run, interrupt, alarm), *reporting.callbacks(config.report_to, run.path)],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output, where results go
    return trainer


def train_to_end(trainer: PassTrainer, run: Run, alarm: Alarm | None = None) -> None:
    """Train from the newest good checkpoint, if there is one; where it is stopped, save another and let Stopped go on.

    The alarm first sees the rows of a resumed run again. If it asked for the end there, the checkpoint is that end.
    Raises BadInput where the loss is no number; the last checkpoint stays.
    """
    checkpoint = newest_good(run.path)
    if alarm and checkpoint:
        for row in read_metrics(run.path):
            alarm.observe(row)
        if alarm.asks_to_stop:
            trainer.take_up(checkpoint)
            return
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Stopped:
        trainer.save_now()
        raise
    except UnpicklingError:
        raise BadInput(
            f"{checkpoint}: a file of it holds more than numbers, and its code was not run. This program writes no "
            "such file: delete the checkpoint and find out who did."
        ) from None


def arguments_of(config: TrainingConfig, output: Path, *, evaluates: bool) -> TrainingArguments:
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


def announce_counts(reports: Mapping[str, Any]) -> None:
    """What was read, split by split; zeros are left out."""
    for split, found in reports.items():
        counted = ", ".join(f"{name} {n:,}" for name, n in asdict(found).items() if n)
        log.info("%s: %s", split, counted or "nothing")


def announce_size(
    config: TrainingConfig, model: nn.Module, layout: Layout, groups: Sequence[Group], *, noun: str
) -> None:
    """Derived numbers with their arithmetic. `noun`: what a group is, in the plural."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("weights: %s trained of %s", f"{trained:,}", f"{sum(p.numel() for p in model.parameters()):,}")
    tokens = sum(layout.tokens([g]) for g in groups)
    if config.tokens_per_batch:
        steps, asked = math.ceil(tokens / config.tokens_per_batch), f"{config.tokens_per_batch:,} tokens"
    else:
        together = config.per_device_train_batch_size * world_size()
        steps, asked = math.ceil(len(groups) / together), f"{together} {noun}"
    log.info("steps per epoch: about %d of %s, %.0f tokens each", steps, asked, tokens / steps)


def announce_saving(layout: Layout, groups: Sequence[Group], report: GroupReport) -> None:
    """What it saves to compute each prompt once."""
    tokens = sum(layout.tokens([g]) for g in groups)
    if report.comparisons:
        share = report.tokens_expanded / tokens
        log.info("tokens: %s; the same comparisons as pairs of rows: %.1f times as many", f"{tokens:,}", share)
