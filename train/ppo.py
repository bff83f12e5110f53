"""`python -m train ppo`: train a language model on what it writes itself, by a reward."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import ProjectConfiguration  # type: ignore[import-untyped]
from torch import Tensor
from transformers import get_scheduler, set_seed

from data.errors import UserError
from train import ppo_report, report, reporting
from train.checkpoints import full_disk_told, newest_good
from train.experience import Diverged, Experience, Scored, check_written, experience_of, score_rollouts, warn_of_endless
from train.files import write_json
from train.groups import Group
from train.hacking import HackingAlarm
from train.interrupt import Interrupt, Stopped
from train.kl_penalty import KlController
from train.layouts import Layout, choose
from train.memory import out_of_memory_told, peak_memory_mb
from train.models import device
from train.policies import check_log_probs
from train.ppo_config import PpoConfig
from train.ppo_inputs import Inputs, check_tokens, read_inputs
from train.ppo_measures import Answers, eval_row, prompt_messages_of, token_columns, variance_explained
from train.ppo_state import Inside, Parts, State, read_inside, save_state
from train.ppo_update import Learner
from train.processes import ending_together, gathered, is_main, joined, rank, world_size
from train.reward_sources import CheckedOnce, JudgedReward, RewardPlan, Scorer, SharedReward
from train.rewards import let_signals_in
from train.roles import Roles, new_roles
from train.rollout_engines import engine_of
from train.rollout_files import file_of, write_rollouts
from train.rollouts import Prompt, Rollouts, RolloutSampling, rollouts_of, step_seed
from train.run import Run, check_output, read_metrics
from train.sampling import stop_tokens
from train.step_progress import StepProgress
from train.training import open_run

log = logging.getLogger(__name__)

SHOWN = (
    *("reward", "gold", "kl", "finished", "tokens", "explained_variance", "tokens_per_s"),
    *("reward_cut", "gold_cut", "eval_reward", "eval_gold", "eval_kl"),
)
"""What a line of the log names."""
SHOWN_SAMPLES = 8
"""Held-out prompts whose responses are kept to be read, before and after."""


@dataclass
class Evaluation:
    """Held-out prompts answered at the start and now."""

    start: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, Any] = field(default_factory=dict)
    start_texts: list[tuple[str, float]] = field(default_factory=list)
    latest_texts: list[tuple[str, float]] = field(default_factory=list)


def main(config: PpoConfig) -> str:
    """Train, evaluate and save; returns the run folder."""
    with Interrupt() as interrupt, joined():
        if config.resume is None:
            check_output(config.output)
        reporting.check(config.report_to)
        accelerator = _accelerator(config)
        inputs = read_inputs(config)
        config = inputs.config
        found = {"max_length": inputs.max_length, **inputs.hashes}
        run = open_run(config, stage="ppo", source=inputs.source, found=found)
        with run.outcome(), ending_together(), out_of_memory_told(config), full_disk_told(run.path):
            if config.report_to != "none":
                accelerator.init_trackers(reporting.PROJECT)
            training = PpoTraining(inputs, accelerator=accelerator, run=run, interrupt=interrupt)
            training.train()
            training.finish()
    return str(config.output)


class PpoTraining:
    """One run of PPO, as this process sees it."""

    def __init__(self, inputs: Inputs, *, accelerator: Accelerator, run: Run, interrupt: Interrupt) -> None:
        config = inputs.config
        set_seed(config.seed)
        self.accelerator = accelerator
        self.config, self.inputs, self.run, self.interrupt = config, inputs, run, interrupt
        self.roles = _roles(config, inputs)
        check_tokens(self.roles, inputs.tokenizer, inputs.train[0], name=config.model)
        check_log_probs(self.roles.model, inputs.train[0].ids, name=config.model)
        self.layout = self._choose_layout()
        self.scorer: Scorer = CheckedOnce(self._scorer(inputs.reward), name=config.reward)
        self.gold = self._scorer(inputs.gold) if inputs.gold else None
        self.engine = engine_of(config, self.roles, inputs.tokenizer, run=run.path)
        self.per_epoch = len(inputs.train) // (config.per_device_train_batch_size * world_size())
        self.total = config.max_steps or math.ceil(config.num_train_epochs * self.per_epoch)
        optimizer = _optimizer(config, self.roles)
        warmup = round(config.warmup_ratio * self.total)
        scheduler = get_scheduler(
            config.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=self.total
        )
        controller = KlController(config.kl_coef, target=config.kl_target, horizon=config.kl_horizon)
        self.parts = Parts(self.roles, optimizer, scheduler, controller)
        self.learner = Learner(config, self.roles, optimizer, layout=self.layout)
        self.alarm = HackingAlarm(config.hacking_alarm, stops=config.stop_on_alarm)
        self.evaluation = Evaluation()
        self.state: State | None = None
        self.saved_step = 0
        self.inside: Inside | None = None
        self.over_budget = ""

    def train(self) -> None:
        """From the newest good checkpoint, if there is one, to the last step; a stopped run saves another."""
        self._announce()
        start = self._evaluate(self.evaluation.start, self.evaluation.start_texts)  # a checkpoint knows it no more
        first = self._take_up()
        progress = StepProgress(self.run, first_step=first, total=self.total, shown=SHOWN, quiet=not is_main())
        try:
            if start and not first:
                progress.row({"step": 0, **start})
            if first and self._evaluates_after(first):  # stopped before its row was written
                self._look(first, progress=progress)
            for step in range(first + 1, self.total + 1):
                row = None if self.alarm.asks_to_stop else self.step(step)
                if row is None:
                    break
                self.interrupt.hold()
                self.state = self.parts.capture(step)  # from here on a stop loses nothing of this step
                progress.row(row, self.alarm)
                self.accelerator.log(row, step=step)
                self.interrupt.release()
                if self._evaluates_after(step):
                    self._look(step, progress=progress)
                if step % self.config.save_steps == 0:  # after its rows: a resumed run has them
                    self._save()
            self._save()
            self._look(self.run.status.step, progress=progress)
        except Diverged:
            raise
        except (Stopped, UserError, RuntimeError):  # a reward that breaks, a server or process that is gone
            self.interrupt.hold()
            self._save()
            raise
        finally:
            progress.close()

    def _evaluates_after(self, step: int) -> bool:
        return bool(self.config.eval_steps) and step % self.config.eval_steps == 0 and step < self.total

    def _take_up(self) -> int:
        """The step that training goes on from. The alarm sees the rows until there again."""
        if self.config.resume is None:
            return 0
        checkpoint = newest_good(self.run.path)
        assert checkpoint is not None  # `open_run` refuses a run without one
        step = self.parts.restore(checkpoint)
        self.inside = read_inside(checkpoint)
        for row in read_metrics(self.run.path):
            self.alarm.observe(row)
        return step

    def _save(self) -> None:
        """A checkpoint of the last complete step, where there is none yet."""
        if self.state and self.state.step != self.saved_step and is_main():
            save_state(self.state, self.run.path, inside=self.inside)
            self.saved_step = self.state.step

    def step(self, step: int) -> dict[str, float] | None:
        """Write, score, learn: one step, counted from 1. Returns its row of metrics; None where the budget is spent."""
        config, began = self.config, time.monotonic()
        self.interrupt.release()
        rollouts = self._write(self._prompts_of(step), samples=config.samples, seed=step_seed(config.seed, step))
        check_written(rollouts, step=step)
        if step == 1:
            warn_of_endless(rollouts)
        written = time.monotonic()
        scored = self._score(rollouts)
        gold = self.gold.score(rollouts) if self.gold else None
        answers = Answers.of(rollouts, scored, gold=gold)
        if config.kl_budget and answers.mean_kl > config.kl_budget:
            self.over_budget = (
                f"budget: after step {step - 1} the policy is {answers.mean_kl:.3g} nats a response from the "
                f"reference; --kl_budget {config.kl_budget:g} ends the training here{self._back_inside()}"
            )
            return None
        if config.kl_budget:
            self.inside = Inside(step - 1, self.roles.state())
        kl_coef, rates = self.parts.controller.coef, [group["lr"] for group in self.parts.optimizer.param_groups]
        experience = experience_of(config, rollouts, scored, kl_coef=kl_coef)
        known = time.monotonic()
        rests = step <= config.critic_warmup_steps
        sums, ratios = self.learner.learn(rollouts, scored, experience, step=step, actor_rests=rests)
        learned = time.monotonic()
        self.parts.scheduler.step()
        if not rests:
            self.parts.controller.update(answers.mean_kl, answers.count)
        if config.inspect_steps and step % config.inspect_steps == 0:
            self._keep(rollouts, scored, experience, ratios=ratios, gold=gold, step=step, kl_coef=kl_coef)
        names = ("learning_rate", "critic_learning_rate")
        return {
            "step": step,
            **sums.measured(config, critic=self.roles.has_critic),
            **answers.row(),
            **variance_explained(experience, scored),
            **self._cut(),
            "kl_coef": kl_coef,
            **dict(zip(names, rates, strict=False)),
            **answers.speed(
                rollout_s=written - began, scoring_s=known - written, update_s=learned - known, passes=sums.passes
            ),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }

    def _cut(self) -> dict[str, float]:
        """How many prompts and responses of the step a reward model of its own has not read whole."""
        judges = ("reward_cut", self.inputs.reward, self.scorer), ("gold_cut", self.inputs.gold, self.gold)
        return {
            name: float(sum(gathered([scorer.cut])))
            for name, plan, scorer in judges
            if plan and scorer and plan.kind == "separate model"
        }

    def _back_inside(self) -> str:
        """Take up the last policy that was seen inside the budget."""
        if self.inside is None:
            return ""
        self.roles.load_state(self.inside.weights)
        return f", with the policy of step {self.inside.step}, the last one inside"

    def finish(self) -> None:
        """Save what was learned, write the card."""
        self.run.last_word = self.over_budget or self.alarm.message
        self.accelerator.end_training()
        if not is_main():
            return
        inputs, found = self.inputs, self._found()
        write_json(self.run.path / "eval.json", found)
        ppo_report.save_roles(self.roles, inputs.tokenizer, self.run.path)
        ppo_report.draw(self.run.path)
        ppo_report.write_card(self.run.path, needs_resize=report.pad_is_new(self.roles.model, inputs.tokenizer))
        log.info("done: %s", ppo_report.in_words(found))

    def _found(self) -> dict[str, Any]:
        """eval.json."""
        config, inputs, evaluation = self.config, self.inputs, self.evaluation
        both = zip(inputs.held_out, evaluation.start_texts, evaluation.latest_texts, strict=False)
        critic = "copy of reward" if inputs.reward.adapter else "fresh"
        return {
            "eval": {**evaluation.latest, "start": evaluation.start} if evaluation.latest else None,
            "samples": [
                {
                    "prompt": prompt.record.prompt[-1].content,
                    "start": before[0],
                    "start_reward": before[1],
                    "end": after[0],
                    "end_reward": after[1],
                }
                for prompt, before, after in list(both)[:SHOWN_SAMPLES]
            ],
            "alarm": {
                "step": self.alarm.step,
                "threshold": self.alarm.threshold,
                "message": self.alarm.message,
                "stopped": self.alarm.asks_to_stop,
            },
            "budget": self.over_budget,
            "roles": {"reward": inputs.reward.kind, "critic": critic if self.roles.has_critic else None},
            "layout": type(self.layout).__name__,
            "prompts": dict(inputs.counts),
            "data": str(config.data),
            "manifest_sha256": inputs.hashes["manifest_sha256"],
        }

    def _prompts_of(self, step: int) -> list[Prompt]:
        """This process's prompts of a step. An epoch has all prompts in a new order, but those that fill no step."""
        epoch, number = divmod(step - 1, self.per_epoch)
        chance = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.inputs.train), generator=chance).tolist()
        count = self.config.per_device_train_batch_size
        first = (number * world_size() + rank()) * count
        return [self.inputs.train[i] for i in order[first : first + count]]

    def _write(self, prompts: Sequence[Prompt], *, samples: int, seed: int) -> Rollouts:
        config = self.config
        sampling = RolloutSampling(
            samples=samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.rollout_batch_size,
            seed=seed,
        )
        return rollouts_of(prompts, self.engine.write(prompts, sampling))

    def _score(self, rollouts: Rollouts) -> Scored:
        return score_rollouts(self.roles, rollouts, self.scorer, layout=self.layout, autocast=self.config.bf16)

    def _keep(
        self,
        rollouts: Rollouts,
        scored: Scored,
        experience: Experience,
        *,
        ratios: Tensor,
        gold: Tensor | None,
        step: int,
        kl_coef: float,
    ) -> None:
        """The step's tokens, for `python -m train inspect`."""
        columns = token_columns(rollouts, scored, experience, ratios=ratios, gold=gold, tokenizer=self.inputs.tokenizer)
        metadata = {"prompts": prompt_messages_of(rollouts), "step": step, "kl_coef": kl_coef}
        if is_main():
            write_rollouts(file_of(self.run.path, step), columns, metadata=metadata)

    def _look(self, step: int, *, progress: StepProgress) -> None:
        """Evaluate after a step, and write that down once."""
        said = self.run.status.message
        self.run.update(message="evaluating")
        row = self._evaluate(self.evaluation.latest, self.evaluation.latest_texts)
        self.run.update(message=said)
        if row and not any(r["step"] == step and "eval_kl" in r for r in read_metrics(self.run.path)):
            progress.row({"step": step, **row})
            self.accelerator.log(row, step=step)

    def _evaluate(self, found: dict[str, Any], texts: list[tuple[str, float]]) -> dict[str, float]:
        """Answer the held-out prompts, each process its share, into `found` and `texts`; returns the row of metrics."""
        count = len(self.inputs.held_out)
        if count < world_size():
            return {}
        parts = torch.arange(count).tensor_split(world_size())
        own = [self.inputs.held_out[i] for i in parts[rank()].tolist()]
        rollouts = self._write(own, samples=1, seed=self.config.seed)
        scored = self._score(rollouts)
        gold = self.gold.score(rollouts) if self.gold else None
        found.clear()
        found.update({"prompts": count, **Answers.of(rollouts, scored, gold=gold).row()})
        texts[:] = gathered(list(zip([s.text for s in rollouts.flat], scored.scores.tolist(), strict=True)))
        return eval_row(found)

    def _scorer(self, plan: RewardPlan) -> Scorer:
        if plan.adapter is not None:
            eos = int(self.inputs.tokenizer.eos_token_id)
            stops = tuple(stop_tokens(self.inputs.tokenizer, self.roles.model))
            return SharedReward(self.roles, self.layout, eos, stops=stops, autocast=self.config.bf16)
        assert plan.judge is not None
        return JudgedReward(plan.judge)

    def _choose_layout(self) -> Layout:
        """Tried on the longest prompts with made-up responses: whatever is written has the same shape."""
        config, prompts = self.config, sorted(self.inputs.train, key=lambda p: len(p.ids))[-2:]
        length = min(config.max_new_tokens, 32)
        made = [tuple(p.ids[(k + i) % len(p.ids)] for i in range(length)) for p in prompts for k in range(3)]
        groups = [
            Group(p.record.id, tuple((*p.ids, *ids) for ids in made[:3]), (0, 0, 0), shared=len(p.ids)) for p in prompts
        ]
        return choose(self.roles.model, groups, packing=config.packing, tokens_per_forward=config.tokens_per_forward)

    def _announce(self) -> None:
        """What was read, and derived numbers with their arithmetic."""
        config, counts = self.config, self.inputs.counts
        log.info("prompts: %s", ", ".join(f"{name} {n:,}" for name, n in counts.items() if n))
        trained = sum(p.numel() for group in self.parts.optimizer.param_groups for p in group["params"])
        base = sum(p.numel() for p in self.roles.base.parameters())
        log.info("weights: %s trained, %s in all on one base", f"{trained:,}", f"{base:,}")
        together = config.per_device_train_batch_size * world_size()
        log.info(
            "a step: %d prompts x %d responses of up to %d tokens, %d passes of %d updates, %d tokens at a time",
            together,
            config.samples,
            config.max_new_tokens,
            config.num_ppo_epochs,
            config.num_mini_batches,
            config.tokens_per_forward,
        )
        log.info("steps: %d, %d an epoch", self.total, self.per_epoch)


def _accelerator(config: PpoConfig) -> Accelerator:
    """It joins the processes and tells other libraries the metrics; gradients are summed by hand."""
    places = ProjectConfiguration(project_dir=str(config.output), logging_dir=str(config.output / "tensorboard"))
    log_with = None if config.report_to == "none" else config.report_to
    return Accelerator(cpu=device().type == "cpu", log_with=log_with, project_config=places)


def _roles(config: PpoConfig, inputs: Inputs) -> Roles:
    roles = new_roles(
        inputs.source,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        reward=inputs.reward.adapter,
        critic=config.advantage == "gae",
        temperature=config.temperature,
        load_in_4bit=config.load_in_4bit,
        gradient_checkpointing=config.gradient_checkpointing,
    ).to(device())
    let_signals_in(roles.model)
    return roles


def _optimizer(config: PpoConfig, roles: Roles) -> torch.optim.Optimizer:
    """Adam with the larger epsilon that PPO wants: PyTorch's steps far in the beginning (Huang et al. 2024)."""
    groups: list[dict[str, Any]] = [{"params": roles.parameters_of("actor"), "lr": config.learning_rate}]
    if roles.has_critic:
        rate = config.critic_learning_rate or config.learning_rate
        groups.append({"params": roles.parameters_of("critic"), "lr": rate})
    return torch.optim.AdamW(groups, eps=1e-5, weight_decay=config.weight_decay)
