"""Our side of the PPO benchmark, and our supervised fine-tuning with as many tokens a step."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import set_seed

from benchmarks.callbacks import save_gradient, train_in_turns
from benchmarks.ppo_work import ADAM_EPSILON, Work
from benchmarks.sides import Turns
from train.configs import SftConfig
from train.experience import experience_of, score_rollouts
from train.groups import Group
from train.interrupt import Interrupt
from train.language_objective import LanguageObjective
from train.layouts import choose
from train.models import load_tokenizer, resolve
from train.policies import new_policy
from train.ppo import PpoTraining
from train.ppo_config import PpoConfig
from train.ppo_inputs import Inputs, sized
from train.reward_sources import RewardPlan
from train.rewards import let_signals_in
from train.roles import read_reward_adapter
from train.rollout_engines import RolloutEngine
from train.rollouts import Prompt, rollouts_of
from train.run import Run
from train.sampling import Sample, Sampling
from train.training import new_trainer

NEVER = "<|never written|>"
"""A token beyond the model's vocabulary: responses that end with it are as long as they may be."""


def ours(turns: Turns) -> None:
    """A step a turn, in the trainer's own loop."""
    work = Work(turns.work)
    training = _PacedTraining(turns, work)
    training.train()
    training.answer()
    turns.wait()
    turns.close()


def gradient_ours(turns: Turns) -> None:
    """The gradient of the first pass over given responses, from given weights."""
    work = Work(turns.work)
    config = work.config(num_ppo_epochs=1)
    training = _MadeTraining(config, work=work)
    with torch.no_grad():
        for name, weight in work.actor_weights().items():
            training.roles.model.get_parameter(name.replace(".weight", ".actor.weight")).copy_(weight)
    written = torch.tensor(work.made_responses()).unflatten(0, (-1, config.samples)).tolist()
    samples = [[Sample("made", finished=True, tokens=len(ids), ids=tuple(ids)) for ids in own] for own in written]
    rollouts = rollouts_of(work.batch(1), samples)
    grads: dict[str, Tensor] = {}

    def keep(*unused: Any) -> None:
        for name, p in training.roles.model.named_parameters():
            if ".actor." in name and p.grad is not None:
                grads[name.replace(".actor.", ".")] = p.grad.clone()
        head: Any = training.roles.value_head
        grads["value_head"] = head.weight.grad.clone()

    training.learner.optimizer.register_step_pre_hook(keep)
    turns.answer()
    if turns.wait():
        scored = score_rollouts(training.roles, rollouts, training.scorer, layout=training.layout, autocast=False)
        experience = experience_of(config, rollouts, scored, kl_coef=config.kl_coef)
        training.learner.learn(rollouts, scored, experience, step=1, actor_rests=False)
        save_gradient(grads, Path(turns.work["gradient"]))
        turns.answer(parameters=len(grads))
    turns.wait()
    turns.close()


def sft(turns: Turns) -> None:
    """Supervised fine-tuning, a step a turn, with the tokens at a time that are its default."""
    work = Work(turns.work)
    _fine_tune(turns, work, _sft_config(work))


def sft_alike(turns: Turns) -> None:
    """The same with as many tokens at a time as PPO has."""
    work = Work(turns.work)
    at_once = sized(work.config(), work.every_prompt(), on_cpu=True).tokens_per_forward
    _fine_tune(turns, work, replace(_sft_config(work), tokens_per_forward=at_once))


def _sft_config(work: Work) -> SftConfig:
    return SftConfig(
        model=work.source.name,
        data=Path("made.jsonl"),
        output=work.folder / "run",
        tokens_per_batch=0,
        per_device_train_batch_size=work.case["prompts"],
        max_steps=work.updates,
        save_steps=10**9,
    )


def _fine_tune(turns: Turns, work: Work, config: SftConfig) -> None:
    """As many conversations a step as PPO has prompts, with as many tokens in all.

    A prompt's responses stand one after another as one; what PPO learns to write is learned here, too.
    """
    groups = []
    for number, prompt in enumerate(work.every_prompt()):
        written = random.Random(number).choices(work.letters, k=turns.work["written_per_prompt"])  # noqa: S311
        groups.append(Group(f"made-{number}", ((*prompt.ids, *written),), (0,), shared=len(prompt.ids)))
    set_seed(config.seed)
    model = new_policy(work.source, lora_r=config.lora_r, lora_alpha=config.lora_alpha, dtype=torch.float32)
    let_signals_in(model)
    trainer = new_trainer(
        config,
        model,
        LanguageObjective(choose(model, groups, packing=config.packing, tokens_per_forward=config.tokens_per_forward)),
        run=Run.create(config.output, stage="sft", config={}),
        interrupt=Interrupt(),
        groups=groups,
        evaluates=False,
    )
    train_in_turns(turns, trainer)


class _ScoredAtTheLastToken:
    """Writes as `python -m train ppo` does. A response that was cut is scored where it was cut, as in TRL."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine

    def write(self, prompts: Sequence[Prompt], config: Sampling) -> list[list[Sample]]:
        return [[s._replace(finished=True) for s in own] for own in self.engine.write(prompts, config)]


class _MadeTraining(PpoTraining):
    """On the case's prompts, update by update."""

    def __init__(self, config: PpoConfig, *, work: Work) -> None:
        self.work = work
        run = Run.create(config.output, stage="ppo", config={})
        super().__init__(_inputs(work, config), accelerator=Accelerator(cpu=True), run=run, interrupt=Interrupt())
        assert self.parts.optimizer.defaults["eps"] == ADAM_EPSILON
        tokenizer = load_tokenizer(work.source)
        if not work.prompts_file:
            tokenizer.add_special_tokens({"eos_token": NEVER})
        self.roles.base.generation_config.eos_token_id = tokenizer.eos_token_id  # TRL knows no other end either
        self.engine = _ScoredAtTheLastToken(replace(self.engine, tokenizer=tokenizer))

    def _prompts_of(self, step: int) -> list[Prompt]:
        return self.work.batch(step)


class _PacedTraining(_MadeTraining):
    """A step a turn. Its time is all between two calls of `step`, with what the loop does in between."""

    def __init__(self, turns: Turns, work: Work) -> None:
        config = work.config()
        super().__init__(config, work=work)
        self.turns = turns
        self.row: dict[str, float] = {}
        self.began = 0.0

    def step(self, step: int) -> dict[str, float] | None:
        self.answer() if self.row else self.turns.answer(layout=type(self.layout).__name__)
        if not self.turns.wait():
            raise SystemExit(1)
        self.began = time.perf_counter()
        found = super().step(step)
        assert found  # without a budget no step is the last
        self.row = found
        return found

    def answer(self) -> None:
        """Tell of the step that is over."""
        seconds, row = time.perf_counter() - self.began, self.row
        written = round(row["tokens"] * self.work.case["prompts"] * self.work.case["samples"])
        whole = written + sum(len(p.ids) for p in self._prompts_of(int(row["step"])))
        self.turns.answer(
            seconds=seconds,
            seconds_writing=written / row["rollout_tokens_per_s"],
            seconds_scoring=whole / row["scoring_tokens_per_s"],
            seconds_learning=whole * row["passes"] / row["update_tokens_per_s"],
            response_tokens=written,
            reward=row["reward"],
            kl=row["kl"],
        )


def _inputs(work: Work, config: PpoConfig) -> Inputs:
    """As `python -m train ppo` reads them, on the case's prompts."""
    reward = resolve(str(work.reward), workspace=work.folder)
    return Inputs(
        config=sized(config, work.every_prompt(), on_cpu=True),
        source=work.source,
        tokenizer=work.tokenizer,
        train=work.every_prompt(),
        held_out=[],
        counts={},
        reward=RewardPlan(str(work.reward), adapter=read_reward_adapter(reward)),
        gold=None,
        hashes={},
        max_length=work.case["p"] + work.case["r"],
    )
