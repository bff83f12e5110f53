"""The settings of the trainings on rankings, with meaning, unit and where the default comes from. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from data.errors import BadInput
from train.config_checks import at_least, check_flips, positive, share

WORKSPACE = Path("var")


@dataclass(frozen=True)
class TrainingConfig:
    """What every training takes."""

    model: str
    """Base model: a local folder, a hub id, smollm2-135m, or a run that trained a language model."""
    data: Path
    """A dataset folder written by `python -m data export`, or any file `python -m data import` reads."""
    output: Path
    """The run folder to make; must not exist or be empty."""
    workspace: Path = WORKSPACE
    """Where smollm2-135m is kept (in models/)."""
    seed: int = 42
    """Seed of the new weights and of the order of the prompts."""
    num_train_epochs: float = 1.0
    """Passes over the data."""
    max_steps: int = 0
    """Optimiser steps; 0 means as many as num_train_epochs needs."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW; about ten times that of full fine-tuning, as LoRA wants (Schulman 2025)."""
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls, to 0 at the last step."""
    warmup_ratio: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay on what is trained."""
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
    own. `auto` is tree where a check at the start finds the same numbers, else padded."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: far less memory, a third slower."""
    load_in_4bit: bool = False
    """Hold the base weights in 4 bits (NF4, QLoRA; Dettmers et al. 2023). Needs bitsandbytes."""
    max_length: int = 1024
    """Longest prompt with response, in tokens. The start of a longer prompt is cut off; cuts are counted."""
    bf16: bool = False
    """Compute in bfloat16 and hold the base weights in it; adapters and heads stay float32."""
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

    _fewest_tokens_per_forward: ClassVar[int] = 1
    """The least that --tokens_per_forward takes."""

    def __post_init__(self) -> None:
        at_least(self, 1, "lora_r", "lora_alpha", "per_device_train_batch_size", "save_steps", "logging_steps")
        at_least(self, 0, "seed", "max_steps", "eval_steps", "weight_decay", "max_grad_norm", "tokens_per_batch")
        at_least(self, 8, "max_length")
        at_least(self, self._fewest_tokens_per_forward, "tokens_per_forward")
        positive(self, "learning_rate", "num_train_epochs")
        share(self, "warmup_ratio", "eval_fraction")


@dataclass(frozen=True)
class RmConfig(TrainingConfig):
    """Train a reward model: the base with LoRA adapters and a one-neuron head, on ranked responses.

    `python -m train rm --resume RUN` continues a stopped run with the settings in RUN/config.json. One epoch is the
    default: more overfits a reward model (Ouyang et al. 2022, section 3.5).
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "margin", "center_rewards_coefficient")
        positive(self, "tie_strength")
        check_flips(self.label_smoothing)
        if self.loss == "plackett_luce":
            _check_plackett_luce(self, plain="bradley_terry")


@dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Supervised fine-tuning in two steps: continue raw text, then learn to answer. A run goes on where another stopped
    if that run is given as --model: its adapter is trained further.

    `python -m train sft --resume RUN` continues a stopped run with the settings in RUN/config.json.
    """

    data: Path
    """For `text`: a .txt file, a folder of them, or JSONL with "text". For `chat`: JSONL with "messages" or
    "prompt"/"response". With --from_rankings: a dataset folder or any file `python -m data import` reads."""
    stage: Literal["text", "chat"] = "chat"
    """What is learned: all tokens of plain documents, or the assistant's tokens of conversations."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are learned."""
    from_rankings: Literal["none", "top1"] = "none"
    """Learn the best response of each ranked prompt instead of conversations."""
    full: bool = False
    """Train all weights, in float32, instead of adapters: 16 bytes a weight. The result is RUN/model."""
    tokens_per_batch: int = 4096
    """Tokens a step: as many whole documents or conversations as fit, packed without padding, none seeing another; 0
    goes by per_device_train_batch_size."""
    per_device_train_batch_size: int = 4
    """Documents or conversations a step, where tokens_per_batch is 0."""
    eval_fraction: float = 0.1
    """Share of the documents or prompts held out, by hash; unused where the dataset brings its own split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_rankings != "none" and self.stage != "chat":
            raise BadInput(f"--from_rankings {self.from_rankings}: rankings are of answers. Use it with --stage chat.")
        if self.full and self.load_in_4bit:
            raise BadInput("--full with --load_in_4bit: weights in 4 bits cannot be trained. Leave one of them out.")


@dataclass(frozen=True)
class DpoConfig(TrainingConfig):
    """Train a language model on rankings directly (DPO and its relatives), with LoRA adapters.

    The reference is the model as it was at the start: the base with the adapters off, or, where --model is a run of
    sft, that run's model. `python -m train dpo --resume RUN` continues a stopped run with the settings in
    RUN/config.json.
    """

    learning_rate: float = 5e-5
    """Peak learning rate of AdamW: ten times the 5e-6 of full fine-tuning (Rafailov et al. 2023 used 1e-6)."""
    loss: Literal[
        "sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "plackett_luce", "dpop", "simpo", "orpo", "kto"
    ] = "sigmoid"
    """DPO (Rafailov et al. 2023), robust DPO (Chowdhury et al. 2024), IPO (Azar et al. 2023, per token), hinge (Zhao et
    al. 2023), DPO per token, DPO of whole rankings (Rafailov et al. 2023, appendix), DPOP (Pal et al. 2024); without a
    reference SimPO (Meng et al. 2024) and ORPO (Hong et al. 2024); KTO (Ethayarajh et al. 2024), which learns from the
    acceptable bar instead of from pairs."""
    beta: float = 0.1
    """How strongly the policy is held to the reference (DPO, KTO); IPO's tau, which by the token wants to be larger
    (0.1 asks for a lead of 5 nats a token, 5 for 0.1); SimPO's beta (2.0 is usual there); ORPO's lambda."""
    label_smoothing: float = 0.0
    """Share of labels believed to be flipped: conservative DPO under `sigmoid`, the noise rate under `robust`."""
    margin: float = 0.0
    """A chosen response's implicit reward must lead by this much for every tier between the two."""
    ties: Literal["half", "davidson", "rao_kupper", "drop"] = "half"
    """What a tie teaches: equal implicit rewards (label one half), a tie's own probability (Chen et al. 2024), or
    nothing."""
    tie_strength: float = 1.0
    """Davidson's nu, or Rao and Kupper's theta - 1: how likely ties are between equal responses."""
    votes: Literal["each", "soft"] = "each"
    """Several annotators of a prompt: each ranking counts once, or their vote shares are soft labels and the prompt
    counts once."""
    rpo_alpha: float = 0.0
    """Weight of the chosen response's negative log-likelihood per token, which holds it up (Pang et al. 2024); 0.2 to 1
    are usual."""
    dpop_lambda: float = 5.0
    """How hard DPOP pulls a chosen response back that has become less likely than under the reference, times beta."""
    simpo_gamma: float = 0.5
    """The lead that SimPO asks for, in implicit reward."""
    desirable_weight: float = 1.0
    """KTO's weight of responses before the acceptable bar. With d of them and u behind it, weights with
    (desirable_weight d) / (undesirable_weight u) between 1 and 4/3 are advised."""
    undesirable_weight: float = 1.0
    """KTO's weight of responses behind the acceptable bar."""
    displacement_alarm: float = 0.1
    """Warn when chosen responses have become less likely than under the reference by this many nats a token while the
    loss falls; 0 turns it off."""
    stop_on_displacement: bool = False
    """End the training where that warning comes, with what was learned until then."""
    reference_cache: Path | None = None
    """File of the reference's log-probs, one line a response; by default one in WORKSPACE/reference that belongs to the
    model."""
    health_prompts: int = 8
    """Held-out prompts that the policy answers at every evaluation, to estimate its KL divergence from the reference
    and see the length of what it writes; 0 turns it off."""
    health_max_new_tokens: int = 128
    """Longest of those answers, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "margin", "rpo_alpha", "dpop_lambda", "simpo_gamma", "displacement_alarm", "health_prompts")
        at_least(self, 0, "desirable_weight", "undesirable_weight")
        at_least(self, 1, "health_max_new_tokens")
        positive(self, "beta", "tie_strength")
        check_flips(self.label_smoothing)
        self._check_loss()

    def _check_loss(self) -> None:
        """Refuse flags that the loss has no place for."""
        if self.loss == "plackett_luce":
            _check_plackett_luce(self, plain="sigmoid")
        if self.label_smoothing and self.loss not in ("sigmoid", "sigmoid_norm", "robust"):
            raise BadInput(f"--label_smoothing {self.label_smoothing}: {self.loss} has no place for it. Leave it out.")
        if self.margin and self.loss not in ("sigmoid", "sigmoid_norm", "robust", "hinge", "dpop", "simpo"):
            raise BadInput(f"--margin {self.margin}: {self.loss} has no place for it. Leave it out.")
        if self.ties in ("davidson", "rao_kupper") and self.loss not in ("sigmoid", "sigmoid_norm"):
            raise BadInput(f"--ties {self.ties}: belongs to --loss sigmoid or sigmoid_norm. Use 'half' or 'drop'.")
        if self.loss == "kto" and (self.votes != "each" or self.ties != "half"):
            raise BadInput("--loss kto: learns from the acceptable bar, not from pairs. Leave out --votes and --ties.")
        if self.loss == "kto" and not self.desirable_weight + self.undesirable_weight:
            raise BadInput("--desirable_weight 0 with --undesirable_weight 0: nothing is left to learn. Raise one.")


def _check_plackett_luce(config: RmConfig | DpoConfig, *, plain: str) -> None:
    """A whole ranking is one term: what belongs to pairs has no meaning there. `plain`: the loss of pairs."""
    for name in ("margin", "label_smoothing"):
        value = getattr(config, name)
        if value:
            raise BadInput(f"--{name} {value}: belongs to pairs. Use it with --loss {plain}.")
    if config.ties != "half":
        raise BadInput(f"--ties {config.ties}: belongs to pairs; plackett_luce knows 'half'. Leave it out.")
    if config.votes != "each":
        raise BadInput(f"--votes {config.votes}: plackett_luce learns from each ranking as it is. Leave it out.")
