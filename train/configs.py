"""Every setting of every stage, with its meaning, unit and where the default comes from. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from data.errors import BadInput
from data.records import MAX_RESPONSES

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

    def __post_init__(self) -> None:
        _at_least(self, 1, "lora_r", "lora_alpha", "per_device_train_batch_size", "save_steps", "logging_steps")
        _at_least(self, 0, "seed", "max_steps", "eval_steps", "weight_decay", "max_grad_norm", "tokens_per_batch")
        _at_least(self, 8, "max_length")
        _at_least(self, 1, "tokens_per_forward")
        _positive(self, "learning_rate", "num_train_epochs")
        _share(self, "warmup_ratio", "eval_fraction")


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
        _at_least(self, 0, "margin", "center_rewards_coefficient")
        _positive(self, "tie_strength")
        _check_flips(self.label_smoothing)
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
        _at_least(self, 0, "margin", "rpo_alpha", "dpop_lambda", "simpo_gamma", "displacement_alarm", "health_prompts")
        _at_least(self, 0, "desirable_weight", "undesirable_weight")
        _at_least(self, 1, "health_max_new_tokens")
        _positive(self, "beta", "tie_strength")
        _check_flips(self.label_smoothing)
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


@dataclass(frozen=True)
class PpoConfig(TrainingConfig):
    """Train a language model on what it writes itself, by a reward (PPO; RLOO and GRPO by --advantage), with LoRA.

    Actor, critic, reward and reference share one copy of the base. The reference is the model as it was at the start:
    the base with the adapters off. A step writes `samples` responses to each of its prompts, scores them, and learns
    from them `num_ppo_epochs` times. `python -m train ppo --resume RUN` continues a stopped run with the settings in
    RUN/config.json.
    """

    data: Path
    """Prompts: a dataset folder, any file `python -m data import` reads (responses are not needed), or a .txt file with
    one prompt a line."""
    reward: str = ""
    """What scores the responses: a run of `python -m train rm`, a merged one, or `package.module:function` with
    function(prompt_messages: list[dict], responses: list[str]) -> list[float], higher is better."""
    gold: str = ""
    """A second judge, named as --reward is. It is only measured, never learned from: an alarm goes off where the reward
    rises and this one falls."""
    learning_rate: float = 3e-5
    """Peak learning rate of Adam: ten times the 3e-6 of full fine-tuning (Huang et al. 2024)."""
    critic_learning_rate: float = 0.0
    """Peak learning rate of the critic; 0 takes learning_rate."""
    warmup_ratio: float = 0.0
    """Share of the steps over which the learning rates rise from 0."""
    per_device_train_batch_size: int = 16
    """Prompts a step and process."""
    samples: int = 2
    """Responses to each prompt of a step. They share the prompt, which is computed once for all of them."""
    temperature: float = 1.0
    """Divides the logits, while sampling and wherever log-probs are taken, of actor and reference alike. Nothing else
    (top_p, top_k, penalties) changes what is sampled: the log-probs would be those of another distribution."""
    max_new_tokens: int = 128
    """Longest response, in tokens."""
    rollout_batch_size: int = 32
    """Responses written at a time; what is written does not depend on it."""
    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    """Generalised advantage estimation with a critic (Schulman et al. 2016); or, without one, each response against the
    mean of the others to its prompt (Ahmadian et al. 2024), or that in standard deviations (Shao et al. 2024)."""
    num_ppo_epochs: int = 4
    """Passes over a step's responses."""
    num_mini_batches: int = 1
    """Optimiser steps a pass; the prompts are dealt out evenly, in another order each time."""
    gamma: float = 1.0
    """Discount of later rewards, a token."""
    lam: float = 0.95
    """GAE's lambda: 0 trusts the critic, 1 the rewards."""
    cliprange: float = 0.2
    """The ratio of new to old probability of a token counts between 1 - cliprange and 1 + cliprange (Schulman et al.
    2017, equation 7)."""
    cliprange_value: float = 0.2
    """A new value counts this far from the old one; 0 does not clip."""
    vf_coef: float = 0.1
    """Weight of the critic's loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, which keeps the actor from certainty."""
    whiten_rewards: bool = False
    """Divide a step's token rewards by their standard deviation; their mean stays."""
    whiten_advantages: bool = True
    """Bring a step's advantages to mean 0 and standard deviation 1 over its tokens. Of `gae` only."""
    missing_eos_penalty: float = 1.0
    """Taken off the score of a response that was cut at max_new_tokens."""
    kl_coef: float = 0.05
    """Weight of the KL divergence from the reference in the reward, a nat (Huang et al. 2024); the coefficient at the
    start where kl_target is set."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How the divergence is estimated from a token's two log-probs (Schulman 2020). k1 is the log ratio itself; k2 and
    k3 vary less and are never negative."""
    kl_target: float = 0.0
    """Divergence to steer to, in nats a response, by changing kl_coef (Ziegler et al. 2019); 0 keeps it fixed."""
    kl_horizon: float = 10000.0
    """How slowly it is changed, in responses."""
    kl_budget: float = 0.0
    """The training ends once the divergence of a step's responses, in nats a response, is above; 0 sets no limit."""
    target_kl: float = 0.0
    """A step's remaining passes are left out once the divergence from the policy that wrote its responses is above, in
    nats a token; 0 never does."""
    critic_warmup_steps: int = 0
    """Steps at the start in which the critic learns alone."""
    hacking_alarm: float = 20.0
    """Warn when the divergence from the reference is above this many nats a response, or when the reward rises while
    lengths or repetitions explode or `gold` falls; 0 turns all of that off."""
    stop_on_alarm: bool = False
    """End the training where that warning comes, with what was learned until then."""
    rollout_engine: Literal["transformers", "vllm"] = "transformers"
    """What writes the responses: this process, or an OpenAI-compatible server of vLLM that takes the adapter anew at
    every step. Log-probs are computed here in both cases."""
    rollout_url: str = "http://127.0.0.1:8000/v1"
    """Address of that server."""
    rollout_model: str = ""
    """What that server calls the base model; left out, the first model it lists."""
    inspect_steps: int = 1
    """Write rollouts/step-N.parquet every so many steps; 0 never does."""
    eval_prompts: int = 32
    """Held-out prompts that are answered at the start, every eval_steps and at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "samples", "max_new_tokens", "rollout_batch_size", "num_ppo_epochs", "num_mini_batches")
        _at_least(self, 0, "critic_learning_rate", "vf_coef", "entropy_coef", "missing_eos_penalty", "kl_coef")
        _at_least(self, 0, "cliprange_value", "kl_target", "kl_budget", "target_kl", "hacking_alarm", "eval_prompts")
        _at_least(self, 0, "critic_warmup_steps", "inspect_steps")
        _positive(self, "temperature", "cliprange", "kl_horizon")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"--{name} {getattr(self, name)}: must be between 0 and 1.")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse flags that do not go together."""
        if not self.reward:
            raise BadInput("--reward is missing: name a run of `python -m train rm`, or package.module:function.")
        if self.tokens_per_batch:
            raise BadInput(
                f"--tokens_per_batch {self.tokens_per_batch}: how long responses become is not known before. Use "
                "--per_device_train_batch_size."
            )
        if self.advantage != "gae" and self.samples < 2:
            raise BadInput(
                f"--advantage {self.advantage} with --samples {self.samples}: a response is compared with the others "
                "to its prompt. Ask for 2 samples or more."
            )
        if self.advantage != "gae" and self.critic_warmup_steps:
            raise BadInput(
                f"--critic_warmup_steps {self.critic_warmup_steps}: {self.advantage} has no critic. Leave it out."
            )
        if self.num_mini_batches > self.per_device_train_batch_size:
            raise BadInput(
                f"--num_mini_batches {self.num_mini_batches}: a step has {self.per_device_train_batch_size} prompts. "
                "Ask for no more."
            )
        if self.max_new_tokens >= self.max_length:
            raise BadInput(
                f"--max_new_tokens {self.max_new_tokens} with --max_length {self.max_length}: no prompt would fit. "
                "Lower the one or raise the other."
            )


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
        _at_least(self, 0, "step", "response")


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
        _at_least(self, 1, "tokens_per_forward")
        _at_least(self, 8 if self.max_length else 0, "max_length")
        _at_least(self, 0, "prompts_limit")
        _share(self, "eval_fraction")
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
    _at_least(config, 1, "samples", "max_new_tokens", "batch_size")
    _at_least(config, 0, "temperature", "seed")
    _positive(config, "top_p")
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


class Stage(NamedTuple):
    """A command of `python -m train`: its settings, and the module whose `main(config)` returns what to print."""

    config: type[Any]
    module: str


STAGES = {
    "sft": Stage(SftConfig, "train.sft"),
    "rm": Stage(RmConfig, "train.rm"),
    "dpo": Stage(DpoConfig, "train.dpo"),
    "ppo": Stage(PpoConfig, "train.ppo"),
    "inspect": Stage(InspectConfig, "train.inspect_rollouts"),
    "score": Stage(ScoreConfig, "train.score"),
    "evaluate": Stage(EvaluateConfig, "train.evaluate"),
    "generate": Stage(GenerateConfig, "train.generate"),
    "merge": Stage(MergeConfig, "train.merge"),
}


def _check_flips(share: float) -> None:
    if not 0 <= share < 0.5:
        raise BadInput(f"--label_smoothing {share}: must be 0 or more and less than 0.5.")


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
