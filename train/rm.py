"""`python -m train rm`: learn a reward model from rankings."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments, set_seed

from data.errors import BadInput
from data.exporting import read_dataset
from train import report
from train.configs import RmConfig
from train.evaluation import evaluate
from train.files import write_json
from train.groups import Group, GroupReport, encode_records
from train.interrupt import Interrupt, Stopped
from train.losses import pairwise_loss
from train.models import ModelSource, device, load_config, load_tokenizer, resolve, versions
from train.progress import RunProgress
from train.rewards import Batch, Layout, PaddedRows, let_signals_in, new_reward_model, row_limit
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
        inputs = _read(config)
        run = _open_run(config, inputs)
        with run.outcome():
            _train(config, inputs, run=run, interrupt=interrupt)
    return str(config.output)


class RewardTrainer(Trainer):
    """Trainer with the pairwise loss over prompt groups; all else is the library's."""

    def __init__(self, *, layout: Layout, held_out: Sequence[Group], interrupt: Interrupt, **options: Any) -> None:
        super().__init__(data_collator=layout.collate, eval_dataset=held_out or None, **options)
        self.layout = layout
        self.held_out = held_out
        self.interrupt = interrupt
        self._window = _Window()
        self._found: dict[str, Any] = {}
        self._evaluated_at = -1

    def compute_loss(self, model: nn.Module, inputs: Batch, *unused: Any, **also_unused: Any) -> Tensor:
        """Loss of one batch of groups, over the comparisons of all of them."""
        scores = self.layout.scores(model, inputs)
        chosen, rejected = scores[inputs["chosen"]], scores[inputs["rejected"]]
        loss = pairwise_loss(chosen, rejected, preference=inputs["preference"], weight=inputs["weight"])
        if not torch.isfinite(loss):
            raise BadInput(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}; training cannot go on from there. "
                "Lower --learning_rate, or leave out --bf16."
            )
        self._window.add(chosen - rejected, inputs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last row."""
        if "loss" in logs:
            logs = {**logs, **self._window.close()}
        super().log(logs, start_time)

    def evaluate(self, *unused: Any, **also_unused: Any) -> dict[str, Any]:
        """Evaluate on the held-out groups, once a step, and log the numbers with `eval_` before their names."""
        if self._evaluated_at != self.state.global_step:
            self.interrupt.release()  # the step is complete, and this may take long
            self._found = evaluate(cast(nn.Module, self.model), self.held_out, self.layout)
            self.interrupt.hold()
            self._evaluated_at = self.state.global_step
            self.log({f"eval_{name}": v for name, v in self._found.items() if isinstance(v, int | float)})
            self._window.restart_clock()
        return self._found

    def save_now(self) -> None:
        """A checkpoint of the last completed step."""
        if self.state.global_step:
            self._save_checkpoint(cast(nn.Module, self.model), trial=None)


class _Window:
    """Sums since the last logged row."""

    def __init__(self) -> None:
        self.wins = self.strict = self.margin = self.tokens = self.seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.since = time.monotonic()

    def add(self, gaps: Tensor, batch: Batch) -> None:
        gaps = gaps.detach()[batch["preference"] == 1.0]
        self.wins += float((gaps > 0).sum()) + 0.5 * float((gaps == 0).sum())
        self.strict += len(gaps)
        self.margin += float(gaps.sum())
        self.tokens += float(batch["lengths"].sum())

    def close(self) -> dict[str, float]:
        seconds = time.monotonic() - self.since
        row = {"seconds": round(seconds, 3), "tokens_per_s": round(self.tokens / seconds, 1)}
        if self.strict:
            row |= {"accuracy": self.wins / self.strict, "margin": self.margin / self.strict}
        self.__init__()  # type: ignore[misc]
        return row


def _read(config: RmConfig) -> Inputs:
    """Data first (it is read in a moment), then the model. Raises UserError."""
    dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
    source = resolve(config.model, workspace=config.workspace)
    if source.adapter:
        raise BadInput(f"--model {config.model}: a run has adapters already. Start from its base, {source.base}.")
    tokenizer = load_tokenizer(source)
    max_length = row_limit(load_config(source), asked=config.max_length)
    groups, reports = {}, {}
    for split in ("train", "eval"):
        records = [r for r in dataset.records if r.split == split]
        groups[split], reports[split] = encode_records(records, tokenizer, max_length=max_length)
    if not groups["train"]:
        raise BadInput(f"{config.data}: no prompt with a ranking to learn from. Rank some, then export again.")
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
    )
    let_signals_in(model)
    layout = PaddedRows(tokens_per_forward=config.tokens_per_forward)
    trainer = RewardTrainer(
        model=model,
        args=_arguments(config, run.path, evaluates=bool(inputs.held_out)),
        layout=layout,
        train_dataset=inputs.train,
        held_out=inputs.held_out,
        interrupt=interrupt,
        callbacks=[RunProgress(run, interrupt)],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output, where results go
    _announce(config, inputs, model=model)
    step = checkpoint_step(run.path)
    try:
        trainer.train(resume_from_checkpoint=str(run.path / f"checkpoint-{step}") if step else None)
    except Stopped:
        trainer.save_now()
        raise
    _finish(config, inputs, trainer=trainer, run=run)


def _arguments(config: RmConfig, output: Path, *, evaluates: bool) -> TrainingArguments:
    """Our flags as the library's."""
    return TrainingArguments(
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
        report_to="none",
        disable_tqdm=True,
    )


def _announce(config: RmConfig, inputs: Inputs, *, model: nn.Module) -> None:
    """Derived numbers, with their arithmetic."""
    for split, found in inputs.reports.items():
        counted = ", ".join(f"{name} {n:,}" for name, n in asdict(found).items() if n)
        log.info("%s: %s", split, counted or "no prompts")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("weights: %s trained of %s", f"{trained:,}", f"{sum(p.numel() for p in model.parameters()):,}")
    prompts, batch = len(inputs.train), config.per_device_train_batch_size
    steps = math.ceil(prompts / batch)
    tokens = inputs.reports["train"].tokens / steps
    log.info("steps per epoch: %d prompts / %d a step = %d, about %.0f tokens a step", prompts, batch, steps, tokens)


def _finish(config: RmConfig, inputs: Inputs, *, trainer: RewardTrainer, run: Run) -> None:
    """Save the adapter, evaluate, write the card."""
    run.update(message="evaluating", eta_s=None)
    found = trainer.evaluate() if inputs.held_out else None
    if found is None:
        log.info("no held-out prompts: nothing to evaluate on")
    write_json(
        run.path / "eval.json",
        {
            "eval": found,
            "groups": {split: asdict(r) for split, r in inputs.reports.items()},
            "data": str(config.data),
            "manifest_sha256": inputs.manifest_sha256,
        },
    )
    report.save_adapter(trainer.model, inputs.tokenizer, run.path / "adapter")
    report.write_card(run.path, needs_resize=report.pad_is_new(trainer.model, inputs.tokenizer))
    report.draw_curves(run.path)
    log.info("done: %s", report.in_words(found))
