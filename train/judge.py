"""What scores the responses of language models: a reward model, or a function of the user's own."""

from __future__ import annotations

import importlib
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from data.errors import BadInput, NotFound, UserError
from data.records import PromptRecord
from train.command_configs import EvaluateConfig
from train.groups import Group, encode_group
from train.layouts import Layout, choose, score_groups
from train.models import ModelSource, device, load_config, load_tokenizer, resolve
from train.ppo_config import PpoConfig
from train.rewards import load_reward_model, row_limit
from train.score import DEFAULT_MAX_LENGTH

log = logging.getLogger(__name__)

ScoringFunction = Callable[[list[dict[str, str]], list[str]], Sequence[float]]

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WEIGHTS = "Leave out --bf16, or train the judge again with a lower --learning_rate."
_SIGNATURE = "function(prompt_messages: list[dict], responses: list[str]) -> list[float]"


class Judged(NamedTuple):
    """One list of scores a prompt, one finite number a response, higher is better; and how much was cut on the way."""

    scores: list[list[float]]
    cut: dict[str, int]


class Judge(Protocol):
    """Evaluation knows no more than this."""

    def score(self, records: Sequence[PromptRecord]) -> Judged:
        """Raises BadInput."""


def judge_of(config: EvaluateConfig, *, trial: PromptRecord) -> Judge:
    """What --judge names, checked before anything is written: a function is tried on `trial`, a prompt with responses.

    Raises UserError.
    """
    if is_function(config.judge):
        _refuse_reward_flags(config)
        return function_judge(config.judge, flag="--judge", trial=trial)
    source = reward_source(config.judge, flag="--judge", workspace=config.workspace)
    return RewardJudge(source, config, flag="--judge", max_length=config.max_length)


def function_judge(path: str, *, flag: str, trial: PromptRecord) -> FunctionJudge:
    """The function that `flag` names, tried on `trial`, a prompt with responses. Raises UserError."""
    judge = FunctionJudge(path, import_function(path, flag=flag), flag=flag)
    judge.score([trial])
    return judge


def is_function(name: str) -> bool:
    """Whether this is `package.module:function`."""
    return bool(_IMPORT_PATH.fullmatch(name)) and not Path(name).exists()


def reward_source(name: str, *, flag: str, workspace: Path) -> ModelSource:
    """The reward model that `flag` names; nothing is loaded yet. Raises UserError where it is none."""
    with named(flag):
        try:
            source = resolve(name, workspace=workspace)
        except NotFound as error:
            raise NotFound(f"{error} A function is named package.module:function.") from None
        if not gives_rewards(source):
            raise BadInput(
                f"{flag} {name}: a language model writes responses and scores none. Give a reward model (a "
                "run of `python -m train rm`, or a merged one), or package.module:function."
            )
        if source.adapter is None and (labels := load_config(source).num_labels) != 1:
            raise BadInput(f"{flag} {name}: a classifier of {labels} labels; a judge has one. Give another.")
        return source


def gives_rewards(source: ModelSource) -> bool:
    """Whether this is a reward model: the adapter of one, or a sequence classifier. Nothing is loaded yet."""
    if source.adapter is not None:
        return source.stage == "rm" or source.gives_rewards
    architectures = AutoConfig.from_pretrained(source.base, trust_remote_code=False).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


@contextmanager
def named(flag: str) -> Iterator[None]:
    """Messages about a model call it by `flag`: one that is no --model is found and loaded like one."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace("--model", flag, 1)) from None


@dataclass
class RewardJudge:
    """A reward model, loaded when it is needed and not before. `quiet`: without a bar."""

    source: ModelSource
    config: EvaluateConfig | PpoConfig
    flag: str
    max_length: int = 0
    """Longest prompt with response, in tokens; 0 means as in the model's own training."""
    quiet: bool = False
    _layout: Layout | None = field(default=None, repr=False)
    _longest: int = field(default=0, repr=False)

    def score(self, records: Sequence[PromptRecord]) -> Judged:
        source = self.source
        tokenizer, model = self._loaded
        limit = row_limit(load_config(source), asked=self.max_length or source.max_length or DEFAULT_MAX_LENGTH)
        cut = {"prompts_cut": 0, "responses_cut": 0, "boundaries_moved": 0}
        groups = [encode_group(r, tokenizer, max_length=limit, counts=cut) for r in records]
        found: list[list[float]] = [[] for _ in groups]
        scored = score_groups(model, groups, self._chosen(model, groups))
        hidden = self.quiet or None
        for number, own in tqdm(scored, total=len(groups), unit="prompt", file=sys.stderr, disable=hidden):
            where = _where(self.flag, source.name, number, records[number])
            found[number] = _checked(own, len(own), where=where, remedy=_WEIGHTS)
        return Judged(found, cut)

    def _chosen(self, model: Any, groups: Sequence[Group]) -> Layout:
        """Tried on these groups where none before was as long: a training asks at every step."""
        longest = max((len(row) for g in groups for row in g.rows), default=0)
        if self._layout is None or longest > self._longest:
            config = self.config
            self._layout = choose(model, groups, packing=config.packing, tokens_per_forward=config.tokens_per_forward)
            self._longest = longest
        return self._layout

    @cached_property
    def _loaded(self) -> tuple[PreTrainedTokenizerBase, Any]:
        with named(self.flag):
            tokenizer = load_tokenizer(self.source)
            dtype = torch.bfloat16 if self.config.bf16 else torch.float32
            return tokenizer, load_reward_model(self.source, dtype=dtype).to(device())


@dataclass(frozen=True)
class FunctionJudge:
    """A function by its import path, called once a prompt. `quiet`: without a bar."""

    name: str
    function: ScoringFunction
    flag: str = "--judge"
    quiet: bool = False

    def score(self, records: Sequence[PromptRecord]) -> Judged:
        found = [
            self._of(record, where=_where(self.flag, self.name, number, record))
            for number, record in enumerate(tqdm(records, unit="prompt", file=sys.stderr, disable=self.quiet or None))
        ]
        return Judged(found, {})

    def _of(self, record: PromptRecord, *, where: str) -> list[float]:
        messages = [{"role": m.role, "content": m.content} for m in record.prompt]
        responses = [r.text for r in record.responses]
        try:
            found = self.function(messages, responses)
        except Exception as error:  # whatever the user's own code raises is theirs to mend
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise BadInput(
                f"{where}: the function raised {_told(error)} ({last.filename}:{last.lineno}). It is called as "
                f"{_SIGNATURE}."
            ) from error
        return _checked(found, len(responses), where=where, remedy="Mend the function.")


def import_function(path: str, *, flag: str = "--judge") -> ScoringFunction:
    """The function at `package.module:function`. Raises BadInput or NotFound.

    Modules are looked for as Python does, in the folder where the command runs first.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFound(
            f"{flag} {path}: there is no module '{error.name}' here. Run the command in the folder that holds it, "
            "install it, or correct the name."
        ) from None
    except Exception as error:  # the module's own code
        raise BadInput(f"{flag} {path}: importing {module_name} raised {_told(error)}. Mend the module.") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = "nothing of that name" if found is None else f"a {type(found).__name__}"
        raise BadInput(f"{flag} {path}: {module_name} holds {what}; it must be {_SIGNATURE}. Correct the name.")
    return found  # type: ignore[no-any-return]


def _refuse_reward_flags(config: EvaluateConfig) -> None:
    for name in ("tokens_per_forward", "packing", "max_length"):
        value = getattr(config, name)
        if value != EvaluateConfig.__dataclass_fields__[name].default:
            raise BadInput(f"--{name} {value}: belongs to a reward model, and --judge is a function. Leave it out.")


def _checked(found: Any, count: int, *, where: str, remedy: str) -> list[float]:
    """Scores as they must be: as many finite numbers as responses. Raises BadInput."""
    rule = f"there must be {count} finite numbers here, one a response, in order. {remedy}"
    try:
        items = None if isinstance(found, str | bytes | dict) else list(found)
    except TypeError:
        items = None
    if items is None:
        raise BadInput(f"{where}: found {type(found).__name__}, which is no list; {rule}")
    if len(items) != count:
        raise BadInput(f"{where}: found {len(items)} scores for {count} responses; {rule}")
    for place, item in enumerate(items, start=1):
        if not _is_finite(item):
            raise BadInput(f"{where}: the score of response {place} is {str(item)[:40]!r}; {rule}")
    return [float(item) for item in items]


def _is_finite(item: Any) -> bool:
    try:
        return not isinstance(item, str | bytes) and math.isfinite(float(item))
    except (TypeError, ValueError):
        return False


def _where(flag: str, judge: str, number: int, record: PromptRecord) -> str:
    return f"{flag} {judge}, prompt {number + 1} ('{record.prompt[-1].content[:40]}')"


def _told(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
