"""The peer's side of the reward-model benchmark: TRL's RewardTrainer on the expanded pairs, at its best."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoConfig, PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import RewardConfig, RewardTrainer

from benchmarks.rm_callbacks import KeptGradient, Paced, gradient_error
from benchmarks.rm_cases import expanded
from benchmarks.rm_ours import Work
from benchmarks.sides import Turns
from train.models import known_warnings, load_config

SWEPT_PAIRS = 4
"""Pairs timed for each setting, at least."""


def peer(turns: Turns) -> None:
    """Train a step a turn: all pairs of a prompt, by gradient accumulation."""
    work = Work(turns.work)
    with known_warnings():
        trainer = _trainer(work, accumulate=work.case.pairs // work.micro_batch, steps=work.steps)
    trainer.add_callback(Paced(turns))
    trainer.train()
    turns.close()


def gradient_peer(turns: Turns) -> None:
    """The gradient that the peer's trainer hands to its optimiser for the same prompt, against ours in a file."""
    work = Work(turns.work)
    kept = KeptGradient()
    with known_warnings():
        trainer = _trainer(work, accumulate=work.case.pairs // work.micro_batch, steps=work.steps, max_grad_norm=0.0)
    trainer.add_callback(kept)
    turns.answer()
    if turns.wait():
        trainer.train()
        error, where = gradient_error(Path(turns.work["gradient"]), kept.grads)
        turns.answer(max_grad_rel_err=error, where=where, parameters=len(kept.grads))
    turns.wait()
    turns.close()


def sweep(turns: Turns) -> None:
    """Seconds per pair at every micro-batch and padding that differ; null where there is nothing to choose."""
    work = Work(turns.work)
    paddings = {RewardConfig(pad_to_multiple_of=p, **_plain(work)).pad_to_multiple_of for p in (None, "auto")}
    settings = [(size, padding) for size in work.case.micro_batches for padding in sorted(paddings, key=str)]
    turns.answer()
    if turns.wait():
        found = _swept(work, settings) if len(settings) > 1 else [None]
        names = ("micro_batch", "padding", "seconds_per_pair")
        turns.answer(settings=[dict(zip(names, (*s, t), strict=True)) for s, t in zip(settings, found, strict=True)])
    turns.wait()
    turns.close()


class _MicroBatches(TrainerCallback):
    """When each micro-batch's backward pass was done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self.ends.append(time.perf_counter())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self.ends.append(time.perf_counter())


def _swept(work: Work, settings: Sequence[tuple[int, int | None]]) -> list[float]:
    """One optimiser step a setting, its first micro-batch not counted; a first round warms the process up."""
    model: Any = None
    found = []
    for n, (micro_batch, padding) in enumerate([settings[0], *settings]):
        work.micro_batch, work.padding = micro_batch, padding
        rounds = math.ceil(SWEPT_PAIRS / micro_batch) if n else 1
        seen = _MicroBatches()
        with known_warnings():
            trainer = _trainer(work, model=model, accumulate=1 + rounds, steps=1)
        trainer.add_callback(seen)
        trainer.train()
        model = trainer.model
        found.append((seen.ends[-1] - seen.ends[0]) / (rounds * micro_batch))
    return found[1:]


def _trainer(work: Work, *, accumulate: int, steps: int, model: Any = None, **changes: Any) -> RewardTrainer:
    """TRL's trainer on pairs in order. `model`: one already under adapters, else TRL loads its own, in float32."""
    size = accumulate * work.micro_batch * steps
    prompts = math.ceil(size / work.case.pairs)
    pairs = [pair for seed in range(prompts) for pair in expanded(work.rows(seed))]
    trainer = RewardTrainer(
        model=model or work.source.base,
        args=RewardConfig(
            per_device_train_batch_size=work.micro_batch,
            gradient_accumulation_steps=accumulate,
            max_steps=steps,
            pad_to_multiple_of=work.padding,
            model_init_kwargs=None if model else _without_dropout(work),
            **_plain(work, **changes),
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=work.tokenizer,
        peft_config=None if model else _adapters(work),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _adapters(work: Work) -> LoraConfig:
    """The same as `train.rewards.new_reward_model` makes."""
    config = work.config()
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def _plain(work: Work, **changes: Any) -> dict[str, Any]:
    """What both sides have in common, and what makes the peer fast: nothing recomputed, nothing saved or reported."""
    config = work.config(**changes)
    return {
        "output_dir": str(work.folder / "peer"),
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "activation_checkpointing": False,  # TRL's default is True, under the older name gradient_checkpointing
        "bf16": False,
        "max_length": None,
        "train_sampling_strategy": "sequential",  # the pairs of a prompt are one optimiser step
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def _without_dropout(work: Work) -> dict[str, float] | None:
    """Dropouts of the model's config at 0: TRL turns off dropout modules, not the attention's, which is a number."""
    wanted = load_config(work.source).to_dict()
    given = AutoConfig.from_pretrained(work.source.base).to_dict()
    return {name: wanted[name] for name, value in given.items() if wanted.get(name) != value} or None
