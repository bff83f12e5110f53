"""Where PPO's scores come from: the reward role on the shared base, a model of its own, or a function."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.errors import BadInput
from data.records import PromptRecord, Response
from train.files import sha256_of
from train.judge import Judge, RewardJudge, function_judge, is_function, named, reward_source
from train.layouts import Layout
from train.models import ModelSource, load_tokenizer, tokenizer_sha256, weights_sha256
from train.ppo_config import PpoConfig
from train.roles import RewardAdapter, Roles, read_reward_adapter
from train.rollouts import Rollouts

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """The loop knows no more than this. `cut`: prompts and responses of the last answer that were not read whole."""

    @property
    def cut(self) -> int: ...

    def score(self, rollouts: Rollouts) -> Tensor:
        """One finite number a response, higher is better. Shape (R,), float32. Raises BadInput."""


@dataclass(frozen=True)
class SharedReward:
    """The reward role on the actor's own base, read at the EOS of each response.

    A response that was cut gets the EOS that it lacks for this, and one that ended by another stop token gets it in
    that one's place: the reward model has seen no other end. `stops`: all stop tokens.
    """

    roles: Roles
    layout: Layout
    eos_token_id: int
    stops: tuple[int, ...] = ()
    autocast: bool = False
    cut: int = 0

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> Tensor:
        ended = [
            replace(g, rows=tuple(self._ended(r, finished=s.finished) for r, s in zip(g.rows, own, strict=True)))
            for g, own in zip(rollouts.groups, rollouts.samples, strict=True)
        ]
        whole = replace(rollouts, groups=tuple(ended))
        scores = torch.zeros(len(rollouts.flat))
        device = self.roles.device
        with self.roles.played("reward"), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            for row in whole.rows(self.layout, device):
                scores[row.ended] = self.roles.scores(row.inputs).float().cpu()
        return scores

    def _ended(self, row: tuple[int, ...], *, finished: bool) -> tuple[int, ...]:
        if not finished:
            return (*row, self.eos_token_id)
        return (*row[:-1], self.eos_token_id) if row[-1] in self.stops else row


@dataclass
class JudgedReward:
    """A reward model of its own, or a function: both read text."""

    judge: Judge
    cut: int = 0

    def score(self, rollouts: Rollouts) -> Tensor:
        judged = self.judge.score(rollouts.records())
        self.cut = judged.cut.get("prompts_cut", 0) + judged.cut.get("responses_cut", 0)
        return torch.tensor([score for own in judged.scores for score in own])


@dataclass(frozen=True)
class RewardPlan:
    """What --reward or --gold comes to, before anything large is loaded: an adapter to share the base, or a judge."""

    name: str
    adapter: RewardAdapter | None = None
    judge: Judge | None = None
    sha256: str = ""
    """Of the reward model's weights; of a function, empty."""

    @property
    def kind(self) -> str:
        """As eval.json calls it."""
        if self.adapter is not None:
            return "shared base"
        return "separate model" if isinstance(self.judge, RewardJudge) else "function"


def plan_reward(
    name: str,
    *,
    flag: str,
    config: PpoConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    trial: PromptRecord,
    may_share: bool,
) -> RewardPlan:
    """Find out what `flag` names. `source`: the base under the actor. `trial`: a prompt to try a function on.

    Raises UserError.
    """
    if is_function(name):
        tried = replace(trial, responses=(Response("Yes."), Response("No.")), rankings=())
        judge = function_judge(name, flag=flag, trial=tried)
        return RewardPlan(name, judge=replace(judge, quiet=True))
    found = reward_source(name, flag=flag, workspace=config.workspace)
    difference = _difference(found, source, tokenizer)
    if may_share and not difference:
        if config.load_in_4bit and not found.load_in_4bit:
            log.info(
                "--load_in_4bit: the reward reads the 4-bit base too, and scores a little otherwise than in training"
            )
        return RewardPlan(name, adapter=read_reward_adapter(found), sha256=_sha256(found))
    if may_share:
        log.info(
            "--reward %s: its %s, so it is loaded as a model of its own, with the memory of a second base. Train "
            "the reward model on --model %s to share one.",
            name,
            difference,
            config.model,
        )
    else:
        log.info("%s %s: loaded as a model of its own, with the memory of a second base", flag, name)
    if 0 < found.max_length < config.max_length:
        log.warning(
            "%s %s: it reads %d tokens at most, as in its training, and a prompt with its response may have %d here: "
            "of longer ones it does not see the start. Lower --max_length or --max_new_tokens.",
            flag,
            name,
            found.max_length,
            config.max_length,
        )
    return RewardPlan(name, judge=RewardJudge(found, config, flag=flag, quiet=True), sha256=_sha256(found))


def _difference(reward: ModelSource, actor: ModelSource, tokenizer: PreTrainedTokenizerBase) -> str:
    """What keeps the two from sharing a base; empty where nothing does."""
    if reward.adapter is None:
        return "weights are a whole model"
    if not _same_weights(reward, actor):
        return f"base is {reward.base} and not {actor.base}"
    with named("--reward"):
        if tokenizer_sha256(load_tokenizer(reward)) != tokenizer_sha256(tokenizer):
            return "tokenizer or chat template is another"
    return ""


def _sha256(source: ModelSource) -> str:
    """Of the base and the adapter together."""
    adapter = sha256_of(source.adapter / "adapter_model.safetensors") if source.adapter else ""
    return hashlib.sha256(f"{weights_sha256(source)} {adapter}".encode()).hexdigest()


def _same_weights(one: ModelSource, other: ModelSource) -> bool:
    if one.base == other.base:
        return True
    local = Path(one.base).is_dir() and Path(other.base).is_dir()
    return local and weights_sha256(one) == weights_sha256(other)


class CheckedOnce:
    """A scorer whose first answer is asked for twice, and all of whose answers must be finite."""

    def __init__(self, scorer: Scorer, *, name: str) -> None:
        self._scorer = scorer
        self._name = name
        self._checked = False

    @property
    def cut(self) -> int:
        return self._scorer.cut

    def score(self, rollouts: Rollouts) -> Tensor:
        found = self._scorer.score(rollouts)
        if not self._checked:
            self._check_reproducible(found, self._scorer.score(rollouts))
            self._checked = True
        wrong = torch.nonzero(~torch.isfinite(found)).flatten().tolist()
        if wrong:
            prompts = sorted({rollouts.prompts[i // rollouts.per_prompt].record.id for i in wrong})
            raise BadInput(
                f"--reward {self._name}: scores that are no finite numbers, for the prompts {', '.join(prompts[:5])}. "
                "Train the reward model again with a lower --learning_rate."
            )
        return found

    def _check_reproducible(self, first: Tensor, second: Tensor) -> None:
        """Nothing can be learned from chance. Raises BadInput."""
        worst = float((first - second).abs().max())
        if not worst <= 1e-4 * max(1.0, float(first.abs().max())) and torch.isfinite(first).all():
            raise BadInput(
                f"--reward {self._name}: the same responses were scored twice, up to {worst:.2g} apart; a reward must "
                "be reproducible. Take chance (dropout, sampling, clocks) out of it."
            )
