"""Four roles on one base: actor, critic, reward and reference share its weights, each with an adapter of its own.

Two traps are closed here. PEFT stops the gradients of adapters that are not active, so that a loss whose role was
switched away before its backward pass trains nothing: here the trained roles keep theirs whatever is active. And with
gradient checkpointing, layers are computed again in the backward pass under whichever adapter is active by then, which
gives wrong gradients without a word: here the role of the forward pass comes back for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from data.errors import BadInput
from train.layouts import Batch
from train.lora_linear import add_on
from train.models import ModelSource, known_warnings
from train.policies import Head, load_policy_base, token_log_probs, token_log_probs_and_entropies
from train.rewards import Float32Head

log = logging.getLogger(__name__)

Role = Literal["actor", "critic", "reward", "reference"]

VALUE_HEAD = "value_head.safetensors"
_SCORE = "score.weight"


@dataclass(frozen=True)
class RewardAdapter:
    """A trained reward model's adapter and head, on the base that the policy stands on too."""

    config: LoraConfig
    weights: Mapping[str, Tensor]
    head: Tensor
    """Shape (1, d)."""


class Roles:
    """The base under the adapters of its roles, and the heads. `actor` is active unless another role is `played`."""

    def __init__(
        self, model: PeftModel, *, reward_head: Float32Head | None, value_head: Float32Head | None, temperature: float
    ) -> None:
        self.model = model
        wrapped: Any = model
        self.base: Any = wrapped.get_base_model()
        self.reward_head = reward_head
        self.value_head = value_head
        self.head = Head(self.base, temperature=temperature)
        self._backbone = getattr(self.base, self.base.base_model_prefix)
        self._layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
        self._trained = [*self.parameters_of("actor"), *self.parameters_of("critic")]
        self.active: Role = "critic"
        self._switch("actor")

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return next(self.base.parameters()).device  # type: ignore[no-any-return]

    def to(self, device: torch.device) -> Roles:
        """Move everything; a base in 4 bits lies where it was loaded."""
        if not getattr(self.base, "is_loaded_in_4bit", False):
            self.model.to(device)
        for head in filter(None, (self.reward_head, self.value_head)):
            head.to(device)
        return self

    @property
    def has_critic(self) -> bool:
        """Whether values are learned."""
        return self.value_head is not None

    def parameters_of(self, role: Role) -> list[nn.Parameter]:
        """What the role alone owns: its adapter, and its head."""
        own = [p for name, p in self.model.named_parameters() if f".{role}." in name and "lora_" in name]
        head = {"critic": self.value_head, "reward": self.reward_head}.get(role)
        return own + (list(head.parameters()) if head is not None else [])

    @contextmanager
    def played(self, role: Role) -> Iterator[None]:
        """While entered, the base answers in this role."""
        before = self.active
        self._switch(role)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, role: Role) -> None:
        if role == self.active:
            return
        for layer in self._layers:
            if role == "reference":
                layer.enable_adapters(False)
            else:
                layer.enable_adapters(True)
                layer.set_adapter([role], inference_mode=True)
        for p in self._trained:  # peft has just stopped them all
            p.requires_grad_(True)
        self.active = role

    def contexts_of_recomputation(self) -> tuple[Any, Any]:
        """For `torch.utils.checkpoint`: around a layer's forward, and around its recomputation in the backward pass."""
        return nullcontext(), self.played(self.active)

    def log_probs(self, row: Batch) -> Tensor:
        """Of the row's learned tokens, by actor or reference, whichever is played. Shape (N,), nats."""
        return token_log_probs(self._at_predictors(row), row["targets"], head=self.head)

    def log_probs_and_entropies(self, row: Batch, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """The same, with the entropy at each place. Shapes: each (N,), nats."""
        return token_log_probs_and_entropies(
            self._at_predictors(row), row["targets"], head=self.head, entropy_gradient=entropy_gradient
        )

    def values(self, row: Batch) -> Tensor:
        """The critic's estimate before each learned token is written. Shape (N,). Only while it is played."""
        assert self.active == "critic" and self.value_head is not None
        return cast(Tensor, self.value_head(self._at_predictors(row))).squeeze(-1)

    def scores(self, row: Batch) -> Tensor:
        """The reward of each response, at its last token. Shape (R,). Only while the reward is played."""
        assert self.active == "reward" and self.reward_head is not None
        return cast(Tensor, self.reward_head(self._hidden(row)[row["ends"]])).squeeze(-1)

    def _at_predictors(self, row: Batch) -> Tensor:
        return self._hidden(row)[row["predictors"]]

    def _hidden(self, row: Batch) -> Tensor:
        """Of all tokens laid end to end. Shape (B * T, d)."""
        options = {name: row[name] for name in ("position_ids", "trees") if name in row}
        found = self._backbone(
            input_ids=row["input_ids"], attention_mask=row["attention_mask"], use_cache=False, **options
        )
        return cast(Tensor, found.last_hidden_state.flatten(0, 1))

    def state(self) -> dict[str, Tensor]:
        """Copies of all that is trained, by name; on the CPU."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self._named()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put such copies back."""
        with torch.no_grad():
            for name, p in self._named():
                p.copy_(state[name])

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, p in self.model.named_parameters():
            if "lora_" in name and (".actor." in name or ".critic." in name):
                yield name, p
        if self.value_head is not None:
            yield "value_head.weight", cast(nn.Parameter, self.value_head.weight)

    def save_adapter(self, role: Literal["actor", "critic"], folder: Path) -> None:
        """One role's adapter as plain peft loads it; the critic's head beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.model, adapter_name=role)
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
        config = self.model.peft_config[role]
        inference, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(folder))
        config.inference_mode = inference
        if role == "critic" and self.value_head is not None:
            save_file({_SCORE: self.value_head.weight.detach().cpu().contiguous()}, folder / VALUE_HEAD)


def new_roles(
    source: ModelSource,
    *,
    lora_r: int,
    lora_alpha: int,
    dtype: torch.dtype,
    reward: RewardAdapter | None,
    critic: bool,
    temperature: float = 1.0,
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
) -> Roles:
    """The base of `source` with a fresh actor; with `reward` that role, and the critic as its copy.

    A critic without a reward adapter to start from is fresh, its head zero (Ziegler et al. 2019). The caller seeds
    torch first. Raises BadInput.
    """
    base = load_policy_base(source, dtype=dtype, load_in_4bit=load_in_4bit)
    head_dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    plain = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in base.modules()),
    )
    with known_warnings():
        model = cast(PeftModel, get_peft_model(base, plain, adapter_name="actor"))
        if reward:
            for role in ("reward", "critic") if critic else ("reward",):
                _add_trained(model, role, reward, name=source.name)
        elif critic:
            model.add_adapter("critic", plain)
    add_on(model)
    width = base.config.get_text_config().hidden_size
    roles = Roles(
        model,
        reward_head=_head(width, reward.head, dtype=head_dtype) if reward else None,
        value_head=_head(width, reward.head if reward else torch.zeros(1, width), dtype=head_dtype) if critic else None,
        temperature=temperature,
    )
    if roles.reward_head is not None:
        roles.reward_head.requires_grad_(False)
    if gradient_checkpointing:
        _checkpoint_layers(roles, source.name)
    return roles


def read_reward_adapter(source: ModelSource) -> RewardAdapter:
    """The adapter and head of a trained reward model, from its files. Raises BadInput."""
    assert source.adapter is not None
    try:
        state = load_file(source.adapter / "adapter_model.safetensors")
        config = LoraConfig(**_known(json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))))
        head = next(v for k, v in state.items() if k.endswith(_SCORE))
    except (OSError, ValueError, SafetensorError, StopIteration) as error:
        raise BadInput(
            f"--reward {source.name}: its adapter cannot be read ({type(error).__name__}: {str(error)[:100]}). Train "
            "the reward model again."
        ) from None
    return RewardAdapter(config, {k: v for k, v in state.items() if not k.endswith(_SCORE)}, head)


def _known(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in saved.items() if k in LoraConfig.__dataclass_fields__}


def _role_config(trained: Any) -> LoraConfig:
    """The same adapter as part of a language model: its head is kept apart."""
    changed = {"task_type": TaskType.CAUSAL_LM, "modules_to_save": None, "inference_mode": False, "lora_dropout": 0.0}
    return LoraConfig(**{**_known(trained.to_dict()), **changed})


def _add_trained(model: PeftModel, role: str, reward: RewardAdapter, *, name: str) -> None:
    """Give a role a trained reward model's adapter. Raises BadInput where the two models differ."""
    try:
        model.add_adapter(role, _role_config(reward.config))
        expected = get_peft_model_state_dict(model, adapter_name=role)
    except ValueError:  # none of the layers that it names
        expected = {}
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in reward.weights.items()}:
        raise BadInput(
            f"--reward: its adapter does not fit {name}: other layers or sizes. Train the reward model on this model."
        )
    set_peft_model_state_dict(model, dict(reward.weights), adapter_name=role)


def _head(width: int, weight: Tensor, *, dtype: torch.dtype) -> Float32Head:
    head = Float32Head(width, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def _checkpoint_layers(roles: Roles, name: str) -> None:
    options = {"use_reentrant": False, "context_fn": roles.contexts_of_recomputation}
    try:
        roles.base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    except ValueError:
        raise BadInput(f"--gradient_checkpointing: the model {name} cannot do it. Leave it out.") from None
