"""`python -m train dpo`: train a language model on rankings directly."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from data.errors import BadInput
from data.exporting import read_dataset
from data.records import PromptRecord
from train import policy_report, report, reporting
from train.chat import encode_prompt
from train.checkpoints import full_disk_told
from train.configs import DpoConfig
from train.displacement import DisplacementAlarm
from train.files import write_json
from train.groups import Group, GroupReport, encode_records
from train.health import Health
from train.interrupt import Interrupt
from train.kto import with_mismatched
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
from train.policy_losses import PolicyLoss
from train.preference_objective import PreferenceObjective
from train.processes import ending_together, is_main, joined
from train.reference import Identity, ReferenceLogProbs
from train.rewards import let_signals_in, row_limit
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
    prompts: list[list[int]]
    """Token ids of what the policy is asked at an evaluation."""
    identity: Identity
    manifest_sha256: str
    max_length: int


def main(config: DpoConfig) -> str:
    """Train, evaluate and save; returns the run folder."""
    with Interrupt() as interrupt, joined():
        if config.resume is None:
            check_output(config.output)
        reporting.check(config.report_to)
        inputs = _read(config)
        reference = ReferenceLogProbs(_cache_of(config, inputs.identity), inputs.identity)
        found = {
            "max_length": inputs.max_length,
            "manifest_sha256": inputs.manifest_sha256,
            "model_sha256": inputs.identity.model_sha256,
            "tokenizer_sha256": inputs.identity.tokenizer_sha256,
        }
        run = open_run(config, stage="dpo", source=inputs.source, found=found)
        with run.outcome(), ending_together(), out_of_memory_told(config), full_disk_told(run.path):
            _train(config, inputs, reference=reference, run=run, interrupt=interrupt)
    return str(config.output)


def _read(config: DpoConfig) -> Inputs:
    """Data first (it is read in a moment), then the model. Raises UserError."""
    dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
    source = trainable_base(resolve(config.model, workspace=config.workspace), config.workspace)
    tokenizer = load_tokenizer(source)
    max_length = row_limit(load_config(source), asked=config.max_length)
    groups, reports = {}, {}
    for split in ("train", "eval"):
        records = [r for r in dataset.records if r.split == split]
        groups[split], reports[split] = encode_records(
            records,
            tokenizer,
            max_length=max_length,
            soft=config.votes == "soft",
            ties=config.ties != "drop",
            by_bar=config.loss == "kto",
            keep_start=True,
        )
    _check_material(config, reports["train"])
    if config.loss == "kto":
        both = with_mismatched([*groups["train"], *groups["eval"]], dataset.records, tokenizer, max_length=max_length)
        count = len(groups["train"])
        groups = {"train": both[:count], "eval": both[count:]}
    precision = ("bfloat16" if config.bf16 else "float32") + (" on 4 bits" if config.load_in_4bit else "")
    return Inputs(
        source=source,
        tokenizer=tokenizer,
        train=groups["train"],
        held_out=groups["eval"],
        reports=reports,
        prompts=_questions(config, tokenizer, dataset.records, positions=row_limit(load_config(source), asked=10**9)),
        identity=Identity(weights_sha256(source), tokenizer_sha256(tokenizer), precision),
        manifest_sha256=dataset.manifest_sha256,
        max_length=max_length,
    )


def _check_material(config: DpoConfig, found: GroupReport) -> None:
    """Raises BadInput where there is nothing to learn from."""
    if found.used and (config.loss == "kto" or found.only_ties < found.used or config.rpo_alpha):
        return
    if config.loss == "kto":
        raise BadInput(
            f"{config.data}: no ranking has an acceptable bar (A1|A2), which --loss kto learns from. Set bars while "
            "ranking, or use another --loss."
        )
    if found.ties_dropped or found.only_ties:
        raise BadInput(
            f"{config.data}: all {found.ties_dropped + found.ties} comparisons to learn from are ties: no response is "
            "preferred to another. Rank some apart."
        )
    raise BadInput(
        f"{config.data}: no prompt with a ranking to learn from: of {found.prompts} prompts, {found.without_ranking} "
        f"have no ranking and {found.without_comparison} rank fewer than two responses. Rank some, then export again."
    )


def _questions(
    config: DpoConfig, tokenizer: PreTrainedTokenizerBase, records: Sequence[PromptRecord], *, positions: int
) -> list[list[int]]:
    """Prompts to let the policy answer: held-out ones where there are any, evenly from all that leave room."""
    asked = [r for r in records if r.split == "eval"] or list(records)
    encoded = [encode_prompt(tokenizer, r.prompt) for r in asked]
    room = [ids for ids in encoded if len(ids) <= min(config.max_length, positions - config.health_max_new_tokens)]
    count = min(config.health_prompts, len(room))
    if count < min(config.health_prompts, len(encoded)):
        log.info("health: %d of %d prompts leave room for an answer; %d asked", len(room), len(encoded), count)
    return [room[i * len(room) // count] for i in range(count)]


def _cache_of(config: DpoConfig, identity: Identity) -> Any:
    return config.reference_cache or config.workspace / "reference" / f"{identity.name}.jsonl"


def _train(config: DpoConfig, inputs: Inputs, *, reference: ReferenceLogProbs, run: Run, interrupt: Interrupt) -> None:
    set_seed(config.seed)
    model = new_policy(
        inputs.source,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        load_in_4bit=config.load_in_4bit,
        gradient_checkpointing=config.gradient_checkpointing,
    ).to(device())
    let_signals_in(model)
    check_log_probs(model, inputs.train[0].rows[0], name=config.model)
    every = [*inputs.train, *inputs.held_out]
    layout = choose(model, every, packing=config.packing, tokens_per_forward=config.tokens_per_forward)
    health = None
    if inputs.prompts:
        health = Health(inputs.tokenizer, inputs.prompts, max_new_tokens=config.health_max_new_tokens, seed=config.seed)
    objective = PreferenceObjective(
        loss_of(config),
        layout,
        reference=reference,
        held_out=inputs.held_out,
        health=health,
        watches=config.displacement_alarm > 0,
    )
    alarm = DisplacementAlarm(config.displacement_alarm, stops=config.stop_on_displacement)
    trainer = new_trainer(
        config,
        model,
        objective,
        run=run,
        interrupt=interrupt,
        groups=inputs.train,
        evaluates=bool(inputs.held_out),
        alarm=alarm,
    )
    announce_counts(inputs.reports)
    announce_size(config, model, layout, inputs.train, noun="prompts")
    announce_saving(layout, inputs.train, inputs.reports["train"])
    train_to_end(trainer, run, alarm)
    _finish(config, inputs, trainer=trainer, objective=objective, alarm=alarm, health=health, run=run)


def loss_of(config: DpoConfig) -> PolicyLoss:
    """What is minimised, by the flags."""
    return PolicyLoss(
        loss=config.loss,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        margin=config.margin,
        ties=config.ties,
        tie_strength=config.tie_strength,
        rpo_alpha=config.rpo_alpha,
        dpop_lambda=config.dpop_lambda,
        simpo_gamma=config.simpo_gamma,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )


def _finish(
    config: DpoConfig,
    inputs: Inputs,
    *,
    trainer: PassTrainer,
    objective: PreferenceObjective,
    alarm: DisplacementAlarm,
    health: Health | None,
    run: Run,
) -> None:
    """Evaluate, save the adapter, write the card."""
    run.update(message="evaluating", eta_s=None)
    trainer.evaluate()
    if not is_main():
        return
    found = {
        "eval": objective.latest if inputs.held_out else None,
        "generations": health.latest if health else None,
        "displacement": {
            "step": alarm.step,
            "threshold": alarm.threshold,
            "message": alarm.message,
            "stopped": alarm.asks_to_stop,
        },
        "reference": objective.reference.counts(),
        "layout": type(objective.layout).__name__,
        "groups": {split: asdict(r) for split, r in inputs.reports.items()},
        "data": str(config.data),
        "manifest_sha256": inputs.manifest_sha256,
    }
    write_json(run.path / "eval.json", found)
    report.save_adapter(trainer.model, inputs.tokenizer, run.path / "adapter")
    policy_report.draw(run.path)
    policy_report.write_card(run.path, needs_resize=report.pad_is_new(trainer.model, inputs.tokenizer))
    run.last_word = alarm.message
    log.info("done: %s", policy_report.preference_in_words(found))
