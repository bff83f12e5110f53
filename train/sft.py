"""`python -m train sft`: supervised fine-tuning, first on raw text, then on conversations."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from data.errors import BadInput, NotFound
from data.exporting import read_dataset
from train import policy_report, report, reporting
from train.checkpoints import full_disk_told
from train.configs import SftConfig
from train.conversations import (
    conversations_of_rankings,
    encode_conversations,
    read_conversations,
    split_conversations,
)
from train.documents import encode_documents, read_documents, split_documents
from train.files import sha256_of, write_json
from train.groups import Group
from train.interrupt import Interrupt
from train.language_objective import LanguageObjective
from train.layouts import choose
from train.memory import out_of_memory_told
from train.models import (
    ModelSource,
    device,
    load_config,
    load_tokenizer,
    resolve,
    tokenizer_sha256,
    trainable_base,
    weights_sha256,
)
from train.pass_trainer import PassTrainer
from train.policies import check_log_probs, new_policy
from train.processes import ending_together, is_main, joined
from train.rewards import let_signals_in, row_limit
from train.run import Run, check_output, read_config
from train.training import announce_counts, announce_size, new_trainer, open_run, train_to_end

log = logging.getLogger(__name__)

START = "start_adapter"
"""In config.json: the adapter that was trained further, where there was one."""


@dataclass(frozen=True)
class Material:
    """What is learned and held out, and the account of it."""

    train: list[Group]
    held_out: list[Group]
    reports: Mapping[str, Any]
    sha256: str


def main(config: SftConfig) -> str:
    """Train, evaluate and save; returns the run folder."""
    with Interrupt() as interrupt, joined():
        if config.resume is None:
            check_output(config.output)
        reporting.check(config.report_to)
        source = source_of(config)
        tokenizer = load_tokenizer(source)
        max_length = row_limit(load_config(source), asked=config.max_length)
        material = _read(config, tokenizer, max_length=max_length)
        found = {
            "max_length": max_length,
            "manifest_sha256": material.sha256,
            "model_sha256": weights_sha256(source),
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
        }
        if source.adapter:
            found |= {START: str(source.adapter), "adapter_sha256": sha256_of(source.adapter)}
        run = open_run(config, stage="sft", source=source, found=found)
        with run.outcome(), ending_together(), out_of_memory_told(config), full_disk_told(run.path):
            _train(config, source, tokenizer, material=material, run=run, interrupt=interrupt)
    return str(config.output)


def source_of(config: SftConfig) -> ModelSource:
    """The model with the adapter that is to be trained further, if it has one; with --full it is merged in first."""
    source = resolve(config.model, workspace=config.workspace)
    start = read_config(config.resume).get(START) if config.resume else None
    if start and not Path(start).is_dir():
        raise NotFound(f"--resume {config.resume}: the adapter {start} that it began with is gone. Restore it.")
    if start:
        source = replace(source, adapter=Path(start))
    if source.gives_rewards:
        raise BadInput(f"--model {config.model}: a reward model writes nothing. Start from its base ({source.base}).")
    return trainable_base(source, config.workspace) if config.full else source


def _read(config: SftConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Material:
    """The rows of both sides. Raises UserError."""
    reports: dict[str, Any] = {}
    sides: list[tuple[list[Group], Any]]
    if config.stage == "text":
        texts = split_documents(read_documents(config.data), config.eval_fraction)
        sides = [encode_documents(side, tokenizer, max_length=max_length) for side in texts]
        sha256 = sha256_of(config.data)
    else:
        if config.from_rankings == "top1":
            dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
            conversations, reports["best"] = conversations_of_rankings(dataset.records)
            sha256 = dataset.manifest_sha256
        else:
            conversations, sha256 = read_conversations(config.data), sha256_of(config.data)
        talks = split_conversations(conversations, config.eval_fraction)
        sides = [encode_conversations(side, tokenizer, max_length=max_length, turns=config.turns) for side in talks]
    (train, reports["train"]), (held_out, reports["eval"]) = sides
    if not train:
        what = "no response of a ranked prompt" if config.from_rankings != "none" else "no row"
        raise BadInput(f"{config.data}: {what} to learn from ({_counted(reports)}). Add some, or hold out less.")
    return Material(train, held_out, reports, sha256)


def _counted(reports: Mapping[str, Any]) -> str:
    found = reports.get("best") or reports["train"]
    return ", ".join(f"{name} {n}" for name, n in asdict(found).items() if n) or "nothing was read"


def _train(
    config: SftConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    material: Material,
    run: Run,
    interrupt: Interrupt,
) -> None:
    set_seed(config.seed)
    model = new_policy(
        source,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        dtype=torch.bfloat16 if config.bf16 and not config.full else torch.float32,
        load_in_4bit=config.load_in_4bit,
        gradient_checkpointing=config.gradient_checkpointing,
        full=config.full,
    ).to(device())
    let_signals_in(model)
    check_log_probs(model, material.train[0].rows[0], name=config.model)
    every = [*material.train, *material.held_out]
    layout = choose(model, every, packing=config.packing, tokens_per_forward=config.tokens_per_forward)
    objective = LanguageObjective(layout, held_out=material.held_out)
    trainer = new_trainer(
        config,
        model,
        objective,
        run=run,
        interrupt=interrupt,
        groups=material.train,
        evaluates=bool(material.held_out),
    )
    announce_counts(material.reports)
    announce_size(
        config, model, layout, material.train, noun="documents" if config.stage == "text" else "conversations"
    )
    start = dict(objective.evaluate(model)) if material.held_out and is_main() else None
    train_to_end(trainer, run)
    _finish(config, tokenizer, material=material, trainer=trainer, objective=objective, start=start, run=run)


def _finish(
    config: SftConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    material: Material,
    trainer: PassTrainer,
    objective: LanguageObjective,
    start: Mapping[str, float] | None,
    run: Run,
) -> None:
    """Evaluate, save adapter or model, write the card."""
    run.update(message="evaluating", eta_s=None)
    if material.held_out:
        trainer.evaluate()
    else:
        log.info("nothing is held out: nothing to evaluate on")
    if not is_main():
        return
    found = {
        "eval": {**(objective.latest or {}), "start": start} if material.held_out else None,
        "layout": type(objective.layout).__name__,
        "groups": {name: asdict(found) for name, found in material.reports.items()},
        "data": str(config.data),
        "manifest_sha256": material.sha256,
    }
    write_json(run.path / "eval.json", found)
    model = cast(nn.Module, trainer.model)
    needs_resize = report.pad_is_new(model, tokenizer)
    if config.full:
        report.save_model(model, tokenizer, run.path / "model")
    else:
        report.save_adapter(model, tokenizer, run.path / "adapter")
    policy_report.draw(run.path)
    policy_report.write_card(run.path, needs_resize=needs_resize and not config.full)
    log.info("done: %s", policy_report.sft_in_words(found))
