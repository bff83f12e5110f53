"""The settings of PPO, with meaning, unit and where the default comes from. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from data.errors import BadInput
from train.config_checks import at_least, positive
from train.configs import TrainingConfig


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
    tokens_per_forward: int = 0
    """Tokens computed at a time, whole prompts together; what they leave for the backward pass is most of the memory.
    A step takes as many passes as it needs, with the same gradient; a GPU with room is faster with more at a time.
    0 takes 1024 on a GPU. On a CPU it takes 512, about as fast and with less memory, or up to 1024 where the longest
    prompt and its responses have more."""
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

    _fewest_tokens_per_forward: ClassVar[int] = 0
    """0 leaves the choice to the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "samples", "max_new_tokens", "rollout_batch_size", "num_ppo_epochs", "num_mini_batches")
        at_least(self, 0, "critic_learning_rate", "vf_coef", "entropy_coef", "missing_eos_penalty", "kl_coef")
        at_least(self, 0, "cliprange_value", "kl_target", "kl_budget", "target_kl", "hacking_alarm", "eval_prompts")
        at_least(self, 0, "critic_warmup_steps", "inspect_steps")
        positive(self, "temperature", "cliprange", "kl_horizon")
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
        if self.logging_steps != 1:
            raise BadInput(f"--logging_steps {self.logging_steps}: every step of PPO has its row. Leave it out.")
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
