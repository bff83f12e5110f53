"""The settings of what is not training: score, evaluate, generate, merge, inspect. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data.errors import BadInput
from data.records import MAX_RESPONSES
from train.config_checks import at_least, positive, share
from train.configs import WORKSPACE


@dataclass(frozen=True)
class InspectConfig:
    """Show the tokens of one response that PPO learned from: log-probs, KL, reward, value, advantage, ratio."""

    model: Annotated[str, tyro.conf.Positional]
    """A run of `python -m train ppo`."""
    step: int = 0
    """Which step; 0 takes the last one written."""
    response: int = 0
    """Which response of the step, from 0."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        at_least(self, 0, "step", "response")


@dataclass(frozen=True)
class ScoreConfig:
    """Give each response its reward. Writes {"id", "scores": [one per response, in order]} a line."""

    model: str
    """A run of `python -m train rm`, or a folder with a whole sequence classifier of one label."""
    data: Path
    """Prompts with responses: native rows, or any file `python -m data import` reads; one response is enough."""
    out: Path | None = None
    """The file to write; left out, the rows go to standard output."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    tokens_per_forward: int = 4096
    """Tokens computed at a time."""
    packing: Literal["auto", "tree", "padded"] = "auto"
    """How responses are laid out; as in training."""
    max_length: int = 0
    """Longest prompt with response, in tokens; 0 means as in the run's training (1024 for a folder)."""
    bf16: bool = False
    """Compute in bfloat16: faster on most GPUs; scores differ in the third digit."""
    json: bool = False
    """With --out: print the summary as one JSON object."""

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens_per_forward")
        at_least(self, 8 if self.max_length else 0, "max_length")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a reward model on held-out rankings, or a language model by its win rate against another.

    A language model (base, run or merged) writes responses to held-out prompts, the other one too, and --judge scores
    them: `--judge RM_RUN`, or `--judge package.module:function`.
    """

    model: str
    """What to measure: a reward model (a run of `python -m train rm`, a merged one, or any sequence classifier of one
    label), or a language model (base, run or merged)."""
    data: Path
    """For a reward model: a dataset folder or a file with rankings. For a language model: the same, or any file with
    prompts, responses not needed, or a .txt file with one prompt a line."""
    judge: str = ""
    """What scores the responses of a language model: a reward model, or `package.module:function` with
    function(prompt_messages: list[dict], responses: list[str]) -> list[float], higher is better."""
    against: str = ""
    """The language model to win against; left out, what --model was before its training (a run's base)."""
    samples: int = 4
    """Responses that each of the two language models writes per prompt; every pair of them counts."""
    temperature: float = 0.8
    """Divides the logits before sampling, of both models; 0 takes the likeliest token, which allows one sample only."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that hold this much probability (Holtzman et al. 2020)."""
    max_new_tokens: int = 256
    """Longest response, in tokens; longer ones are cut there and counted as unfinished."""
    batch_size: int = 16
    """Responses written at a time; what is written does not depend on it."""
    seed: int = 42
    """Seed of the sampling and of the bootstrap. --model writes what `generate` with this seed writes."""
    prompts_limit: int = 0
    """Use the first so many of the split's prompts only; 0 uses all."""
    out: Path | None = None
    """Also write the responses of both language models here, with their scores: native rows, ready to be ranked."""
    split: Literal["eval", "train", "all"] = "eval"
    """Which prompts: the held-out ones, the others, or all."""
    eval_fraction: float = 0.1
    """Share of the prompts held out, by hash of the prompt; unused where the dataset brings its own split."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    tokens_per_forward: int = 4096
    """Tokens that a reward model computes at a time."""
    packing: Literal["auto", "tree", "padded"] = "auto"
    """How a reward model's responses are laid out; as in training."""
    max_length: int = 0
    """Longest prompt with response that a reward model reads, in tokens; 0 means as in the run's training (1024 for a
    folder)."""
    bf16: bool = False
    """Compute in bfloat16: faster on most GPUs; scores differ in the third digit."""
    plot: Path | None = None
    """Also draw a reward model's measures into this PNG file."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens_per_forward")
        at_least(self, 8 if self.max_length else 0, "max_length")
        at_least(self, 0, "prompts_limit")
        share(self, "eval_fraction")
        _check_sampling(self)
        if self.out is not None and 2 * self.samples > MAX_RESPONSES:
            raise BadInput(
                f"--samples {self.samples} with --out: two models' responses to a prompt make a row of "
                f"{2 * self.samples}, and at most {MAX_RESPONSES} can be ranked. Ask for fewer, or leave --out away."
            )


@dataclass(frozen=True)
class GenerateConfig:
    """Write responses to prompts, ready to be ranked (native rows)."""

    model: str
    """A local folder, a hub id, smollm2-135m, or a run that trained a language model."""
    prompts: Path
    """Native rows (responses not needed), a dataset folder, or a .txt file with one prompt a line."""
    out: Path
    """The file to write."""
    samples: int = 4
    """Responses per prompt."""
    temperature: float = 0.8
    """Divides the logits before sampling; 0 takes the likeliest token, which allows one sample only."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that hold this much probability (Holtzman et al. 2020)."""
    max_new_tokens: int = 256
    """Longest response, in tokens; longer ones are cut there and counted as unfinished."""
    batch_size: int = 16
    """Responses written at a time; what is written does not depend on it."""
    seed: int = 42
    """Seed of the sampling; with the prompt and the sample's number it decides each response."""
    bf16: bool = False
    """Compute in bfloat16: faster on GPUs and on CPUs with bfloat16 units, slower on others."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        _check_sampling(self)
        if self.samples > MAX_RESPONSES:
            raise BadInput(
                f"--samples {self.samples}: at most {MAX_RESPONSES} responses of a prompt can be ranked. Ask for fewer."
            )


def _check_sampling(config: GenerateConfig | EvaluateConfig) -> None:
    """What writing responses asks of its flags."""
    at_least(config, 1, "samples", "max_new_tokens", "batch_size")
    at_least(config, 0, "temperature", "seed")
    positive(config, "top_p")
    if config.top_p > 1:
        raise BadInput(f"--top_p {config.top_p}: a probability is at most 1.")
    if config.temperature == 0 and config.samples > 1:
        raise BadInput(
            f"--temperature 0 with --samples {config.samples}: without chance all samples are the same. "
            "Raise the temperature or ask for one sample."
        )


@dataclass(frozen=True)
class MergeConfig:
    """Merge a run's adapter into its base: a whole model in one folder, which loads without peft.

    Weights are float32. A reward model becomes a sequence classifier of one label, head included.
    """

    model: str
    """A finished run of `python -m train`, or a LoRA adapter folder."""
    output: Path
    """The model folder to make; must not exist or be empty."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    json: bool = False
    """Print the summary as one JSON object."""
