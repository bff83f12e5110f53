"""Every setting of every stage, with its meaning, unit and where the default comes from. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.errors import BadInput

WORKSPACE = Path("var")


@dataclass(frozen=True)
class RmConfig:
    """Train a reward model: the base with LoRA adapters and a one-neuron head, on ranked responses.

    `python -m train rm --resume RUN` continues a stopped run with the settings in RUN/config.json.
    """

    model: str
    """Base model: a local folder, a hub id, smollm2-135m, or a language model's adapter, merged into its base first."""
    data: Path
    """A dataset folder written by `python -m data export`, or any file `python -m data import` reads."""
    output: Path
    """The run folder to make; must not exist or be empty."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    seed: int = 42
    """Seed of the new weights and of the order of the prompts."""
    num_train_epochs: float = 1.0
    """Passes over the data. More than one overfits a reward model (Ouyang et al. 2022, section 3.5)."""
    max_steps: int = 0
    """Optimiser steps; 0 means as many as num_train_epochs needs."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW; about ten times that of full fine-tuning, as LoRA wants (Schulman 2025)."""
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls, to 0 at the last step."""
    warmup_ratio: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay on the adapters and the head."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm at most; 0 turns it off."""
    lora_r: int = 16
    """Rank of the adapters, on all linear layers (Hu et al. 2021)."""
    lora_alpha: int = 32
    """The adapters' output is scaled by lora_alpha / lora_r."""
    per_device_train_batch_size: int = 4
    """Prompts a step; all responses of a prompt are in the same step."""
    tokens_per_batch: int = 0
    """Build steps by tokens instead of prompts: as many prompts as fit this many tokens; 0 goes by prompts."""
    tokens_per_forward: int = 2048
    """Tokens computed at a time, whole prompts together. A step with more takes several passes, with the same gradient;
    a single prompt with more is split by responses and recomputed in its backward pass."""
    packing: Literal["auto", "tree", "padded"] = "auto"
    """How responses are laid out: `tree` computes a prompt once for all its responses, `padded` gives each a row of its
    own. `auto` is tree where a check at the start finds the same rewards, else padded."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: far less memory, a third slower."""
    load_in_4bit: bool = False
    """Hold the base weights in 4 bits (NF4, QLoRA; Dettmers et al. 2023). Needs bitsandbytes."""
    max_length: int = 1024
    """Longest prompt with response, in tokens. The start of a longer prompt is cut off; cuts are counted."""
    bf16: bool = False
    """Compute in bfloat16 and hold the base weights in it; the adapters and the score head stay float32."""
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """Of pairs (Ouyang et al. 2022, equation 1), or of each whole ranking as a sequence of choices (Plackett 1975)."""
    ties: Literal["half", "davidson", "rao_kupper", "drop"] = "half"
    """What a tie teaches: equal rewards (label one half), a tie's own probability (Davidson 1970; Rao and Kupper 1967),
    or nothing."""
    tie_strength: float = 1.0
    """Davidson's nu, or Rao and Kupper's theta - 1: how likely ties are between equal responses."""
    votes: Literal["each", "soft"] = "each"
    """Several annotators of a prompt: each ranking counts once, or their vote shares are soft labels and the prompt
    counts once."""
    label_smoothing: float = 0.0
    """Share of labels believed to be flipped: 1 becomes 1 - label_smoothing."""
    margin: float = 0.0
    """A chosen response must lead by this much for every tier between the two (Touvron et al. 2023, section 3.2.2)."""
    center_rewards_coefficient: float = 0.0
    """Weight of (chosen + rejected)^2, which keeps rewards around 0; 0.01 is usual (Eisenstein et al. 2023)."""
    normalize: bool = True
    """Bring the rewards of the training responses to mean 0 and standard deviation 1 at the end, within the head."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Also send the metrics to this library, which must be installed; `none` sends nothing anywhere."""
    eval_fraction: float = 0.1
    """Share of the prompts held out, by hash of the prompt; unused where the dataset brings its own split."""
    eval_steps: int = 0
    """Evaluate every so many steps; 0 means at the end only."""
    save_steps: int = 25
    """Write a checkpoint every so many steps; the two newest are kept."""
    logging_steps: int = 1
    """Write a row of metrics every so many steps."""
    resume: Path | None = None
    """Continue this run instead of starting one; the other flags come from its config.json."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "lora_r", "lora_alpha", "per_device_train_batch_size", "save_steps", "logging_steps")
        _at_least(self, 0, "seed", "max_steps", "eval_steps", "weight_decay", "max_grad_norm", "tokens_per_batch")
        _at_least(self, 0, "margin", "center_rewards_coefficient")
        _at_least(self, 8, "max_length")
        _at_least(self, 1, "tokens_per_forward")
        _positive(self, "learning_rate", "num_train_epochs", "tie_strength")
        _share(self, "warmup_ratio", "eval_fraction")
        if not 0 <= self.label_smoothing < 0.5:
            raise BadInput(f"--label_smoothing {self.label_smoothing}: must be 0 or more and less than 0.5.")
        if self.loss == "plackett_luce":
            self._check_plackett_luce()

    def _check_plackett_luce(self) -> None:
        """A whole ranking is one term: what belongs to pairs has no meaning there."""
        pairwise = {"margin": self.margin, "label_smoothing": self.label_smoothing}
        for name, value in pairwise.items():
            if value:
                raise BadInput(f"--{name} {value}: belongs to pairs. Use it with --loss bradley_terry.")
        if self.ties != "half":
            raise BadInput(f"--ties {self.ties}: belongs to pairs; plackett_luce knows 'half'. Leave it out.")
        if self.votes != "each":
            raise BadInput(f"--votes {self.votes}: plackett_luce learns from each ranking as it is. Leave it out.")


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
        _at_least(self, 1, "tokens_per_forward")
        _at_least(self, 8 if self.max_length else 0, "max_length")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a reward model on ranked responses it was not trained on."""

    model: str
    """A run of `python -m train rm`, or a folder with a whole sequence classifier of one label."""
    data: Path
    """A dataset folder or a file with rankings."""
    split: Literal["eval", "train", "all"] = "eval"
    """Which prompts: the held-out ones, the others, or all."""
    eval_fraction: float = 0.1
    """Share of the prompts held out, by hash of the prompt; unused where the dataset brings its own split."""
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
    plot: Path | None = None
    """Also draw the measures into this PNG file."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "tokens_per_forward")
        _at_least(self, 8 if self.max_length else 0, "max_length")
        _share(self, "eval_fraction")


@dataclass(frozen=True)
class GenerateConfig:
    """Write responses to prompts, ready to be ranked (native rows)."""

    model: str
    """A local folder, a hub id, smollm2-135m, or a run that trained a language model."""
    prompts: Path
    """Native rows (responses not needed), or a .txt file with one prompt a line."""
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
    """Responses written at a time."""
    seed: int = 42
    """Seed of the sampling."""
    bf16: bool = False
    """Compute in bfloat16: faster on GPUs and on CPUs with bfloat16 units, slower on others."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "samples", "max_new_tokens", "batch_size")
        _at_least(self, 0, "temperature", "seed")
        _positive(self, "top_p")
        if self.top_p > 1:
            raise BadInput(f"--top_p {self.top_p}: a probability is at most 1.")
        if self.temperature == 0 and self.samples > 1:
            raise BadInput(
                f"--temperature 0 with --samples {self.samples}: without chance all samples are the same. "
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


class Stage(NamedTuple):
    """A command of `python -m train`: its settings, and the module whose `main(config)` returns what to print."""

    config: type[Any]
    module: str


STAGES = {
    "rm": Stage(RmConfig, "train.rm"),
    "score": Stage(ScoreConfig, "train.score"),
    "evaluate": Stage(EvaluateConfig, "train.evaluate"),
    "generate": Stage(GenerateConfig, "train.generate"),
    "merge": Stage(MergeConfig, "train.merge"),
}


def _at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= least):
            raise BadInput(f"--{name} {value}: must be {least} or more.")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"--{name} {value}: must be more than 0.")


def _share(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise BadInput(f"--{name} {value}: a share is at least 0 and less than 1.")
