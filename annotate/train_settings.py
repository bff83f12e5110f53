"""The settings that the Train page asks for, stage by stage, in words. Their defaults and rules are training's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import BadInput
from train.stages import STAGES


@dataclass(frozen=True)
class Number:
    """A number; `name` is the one that training knows it under."""

    name: str
    label: str
    info: str
    least: float = 0
    whole: bool = True

    def read(self, value: Any) -> int | float:
        """What the page sent, as training takes it; training's own rules check the size. Raises BadInput."""
        if value is None:
            raise BadInput(f"{self.label} is empty. Give a number.")
        return int(value) if self.whole else float(value)

    def in_words(self, value: Any) -> str:
        """A value of it, to be read."""
        return str(value)


@dataclass(frozen=True)
class Choice:
    """One of some values, each with its words."""

    name: str
    label: str
    info: str
    options: tuple[tuple[str, str], ...]
    """Words and value of each."""

    def read(self, value: Any) -> str:
        """What the page sent. Raises BadInput for what is not offered."""
        if value not in [offered for _, offered in self.options]:
            raise BadInput(f"{self.label}: this is none of the choices. Choose one of the list.")
        return str(value)

    def in_words(self, value: Any) -> str:
        """A value of it, to be read."""
        return next((f"{words} ({value})" for words, offered in self.options if offered == value), str(value))


@dataclass(frozen=True)
class Switch:
    """On or off."""

    name: str
    label: str
    info: str

    def read(self, value: Any) -> bool:
        """What the page sent."""
        return bool(value)

    def in_words(self, value: Any) -> str:
        """A value of it, to be read."""
        return "yes" if value else "no"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of another stage, by its folder; empty where none is chosen. The page knows which there are."""

    name: str
    label: str
    info: str
    stage: str
    needed: bool = False

    def read(self, value: Any) -> str:
        """What the page sent; whether there is such a run, the page checks."""
        return value if isinstance(value, str) else ""

    def in_words(self, value: Any) -> str:
        """A value of it, to be read: a folder by its name."""
        path = Path(str(value))
        return (path.name if path.is_absolute() else str(value)) or "none"


Setting = Number | Choice | Switch | FinishedRun

_EPOCHS = Number("num_train_epochs", "Epochs", "Passes over the data; more than one tends to overfit", whole=False)
_STEPS = Number("max_steps", "Max steps", "Stop after so many steps; 0 goes by epochs")
_RATE = Number("learning_rate", "Learning rate", "Peak rate; lower it if the loss jumps", whole=False)
_RANK = Number("lora_r", "LoRA rank", "Size of what is learned on top of the base", least=1)
_PROMPTS = Number("per_device_train_batch_size", "Prompts per step", "More is steadier and needs more memory", least=1)
_LENGTH = Number(
    "max_length", "Max length", "Prompt with response, in tokens; longer prompts lose their start", least=8
)
_SEED = Number("seed", "Seed", "The same seed gives the same run")
_MEASURE = Number("eval_steps", "Measure every", "Steps between two looks at the held-out prompts; 0: only at the end")

_TIES = Choice(
    "ties",
    "Ties",
    "What is learned from responses that were ranked equal",
    (
        ("They are equally good", "half"),
        ("Ties have a chance of their own, Davidson", "davidson"),
        ("Ties have a chance of their own, Rao-Kupper", "rao_kupper"),
        ("Nothing: leave ties out", "drop"),
    ),
)
_VOTES = Choice(
    "votes",
    "Several annotators of a prompt",
    "How their rankings come together",
    (("Each ranking counts once", "each"), ("Shares of their votes", "soft")),
)

_SFT: tuple[Setting, ...] = (
    _EPOCHS,
    _STEPS,
    _RATE,
    _RANK,
    Number("tokens_per_batch", "Tokens per step", "Whole conversations that fit; 0 takes four of them", least=0),
    Number("max_length", "Max length", "Prompt with response, in tokens; longer ones are cut", least=8),
    _SEED,
    _MEASURE,
)

_RM: tuple[Setting, ...] = (
    _EPOCHS,
    _STEPS,
    _RATE,
    _RANK,
    _PROMPTS,
    _LENGTH,
    _SEED,
    Choice(
        "loss",
        "Learns from",
        "What one example is",
        (("Pairs of responses, Bradley-Terry", "bradley_terry"), ("Whole rankings, Plackett-Luce", "plackett_luce")),
    ),
    _TIES,
    _VOTES,
)

_DPO: tuple[Setting, ...] = (
    Choice(
        "loss",
        "Method",
        "How it learns from the rankings",
        (
            ("DPO, the usual one", "sigmoid"),
            ("DPO that expects wrong labels", "robust"),
            ("DPO per token: long responses weigh no more", "sigmoid_norm"),
            ("DPOP: holds chosen responses up", "dpop"),
            ("IPO: aims at a set lead, overfits less", "ipo"),
            ("Hinge: rests once the lead is enough", "hinge"),
            ("Plackett-Luce: whole rankings at once", "plackett_luce"),
            ("SimPO: per token, without a reference", "simpo"),
            ("ORPO: imitates and prefers, without a reference", "orpo"),
            ("KTO: from the acceptable bar, not from pairs", "kto"),
        ),
    ),
    Number("beta", "Beta", "How firmly it stays near where it began; 2 is usual for SimPO", whole=False),
    Number("rpo_alpha", "Hold up the chosen", "Weight of imitating them too (RPO); 0.2 to 1 is usual", whole=False),
    _EPOCHS,
    _STEPS,
    _RATE,
    _RANK,
    _PROMPTS,
    _LENGTH,
    _SEED,
    _MEASURE,
    _TIES,
    _VOTES,
    Number("label_smoothing", "Wrong labels", "Share believed to be wrong, below 0.5", whole=False),
    Number(
        "displacement_alarm",
        "Alarm at",
        "Warn when chosen responses lose so many nats a token; 0 turns it off",
        whole=False,
    ),
    Switch("stop_on_displacement", "Stop at the alarm", "End the training there, with what was learned"),
)

_PPO: tuple[Setting, ...] = (
    FinishedRun("reward", "Scored by", "A finished reward model: PPO learns from its scores", stage="rm", needed=True),
    FinishedRun(
        "gold",
        "Second judge",
        "Another reward model, only measured: it tells better answers from a fooled judge",
        "rm",
    ),
    Choice(
        "advantage",
        "Method",
        "What a response is compared with",
        (
            ("PPO: what a critic expected", "gae"),
            ("RLOO: the other responses to its prompt", "rloo"),
            ("GRPO: these, in standard deviations", "grpo"),
        ),
    ),
    _STEPS,
    Number("num_train_epochs", "Epochs", "Passes over the prompts, where max steps is 0", whole=False),
    Number("per_device_train_batch_size", "Prompts per step", "Different ones; more is steadier", least=1),
    Number("samples", "Responses per prompt", "Written at each step; RLOO and GRPO need 2", least=1),
    Number("max_new_tokens", "Longest response", "In tokens; longer ones are cut and lose reward", least=1),
    Number("kl_coef", "KL weight", "How firmly it stays near where it began, a nat", whole=False),
    Number(
        "kl_budget",
        "KL budget",
        "End the training this far from the start, in nats a response; 0: no limit",
        whole=False,
    ),
    _RATE,
    Number("num_ppo_epochs", "Passes per step", "How often each step's responses are learned from", least=1),
    Number(
        "missing_eos_penalty", "Penalty when cut", "Taken off the reward of a response that does not end", whole=False
    ),
    _RANK,
    Number("max_length", "Max length", "Prompt with response, in tokens; longer prompts are left out", least=8),
    _SEED,
    _MEASURE,
    Number("eval_prompts", "Held-out prompts asked", "How many are answered to measure it"),
    Number(
        "hacking_alarm",
        "Alarm at",
        "Warn this many nats from the start, or when the reward is being fooled; 0 turns it off",
        whole=False,
    ),
    Switch("stop_on_alarm", "Stop at the alarm", "End the training there, with what was learned"),
)

SETTINGS: Mapping[str, tuple[Setting, ...]] = {"sft": _SFT, "rm": _RM, "dpo": _DPO, "ppo": _PPO}
"""What the page asks for, by stage, in its order."""

FINISHED_RUNS: tuple[tuple[str, FinishedRun], ...] = tuple(
    (stage, setting) for stage, settings in SETTINGS.items() for setting in settings if isinstance(setting, FinishedRun)
)
"""Those settings whose choices change as runs finish, with the stage they are asked for."""

_RANKINGS = {"stage": "chat", "from_rankings": "top1"}
FIXED: Mapping[str, Mapping[str, str]] = {"sft": _RANKINGS, "rm": {}, "dpo": {}, "ppo": {}}
"""What a start from the page always says: its data are rankings."""


def default_of(stage: str, name: str) -> Any:
    """Training's own default."""
    return STAGES[stage].config.__dataclass_fields__[name].default


def sent(stage: str, values: Sequence[Any]) -> dict[str, Any]:
    """A stage's values among those of all stages, which the page sends one after another, as they came.

    Raises BadInput for a stage that the page does not offer.
    """
    if stage not in SETTINGS:
        raise BadInput(f"'{stage}' is no training stage of this page. Choose one of the list.")
    names = [(own, setting.name) for own, settings in SETTINGS.items() for setting in settings]
    return {name: value for (own, name), value in zip(names, values, strict=True) if own == stage}


def read(stage: str, values: Sequence[Any]) -> dict[str, Any]:
    """The same, checked, with what is fixed. Raises BadInput."""
    own = sent(stage, values)
    return {**FIXED[stage], **{setting.name: setting.read(own[setting.name]) for setting in SETTINGS[stage]}}


def in_words(stage: str, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a run, as far as its config has them."""
    settings = SETTINGS.get(stage, ())
    return [(setting.label, setting.in_words(config[setting.name])) for setting in settings if setting.name in config]
