"""Policies: language models that are trained, and the log-probs of what they might have written.

A policy called with `targets` gives the log-prob of each, computed in float32 at least and in chunks, over the learned
places only: no tensor of tokens by vocabulary is ever kept. Called without, it is the library's model unchanged.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from data.errors import BadInput
from train.models import ModelSource, load_adapter, load_config, load_weights
from train.rewards import add_adapters, checkpoint_layers

log = logging.getLogger(__name__)

CHUNK_NUMBERS = 2**24
"""Logits computed at a time, places times vocabulary: 64 MB in float32."""


def new_policy(
    source: ModelSource,
    *,
    lora_r: int,
    lora_alpha: int,
    dtype: torch.dtype,
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
    full: bool = False,
) -> Any:
    """The base under fresh adapters on all linear layers; under those of `source`, trained further, where it has some.

    `full`: all weights are trained instead, and there are no adapters. The caller seeds torch first. Raises BadInput.
    """
    base = load_policy_base(source, dtype=dtype, load_in_4bit=load_in_4bit)
    if full:
        model: Any = base
    elif source.adapter is not None:
        model = load_adapter(base, source, trainable=True)
    else:
        model = add_adapters(base, TaskType.CAUSAL_LM, lora_r=lora_r, lora_alpha=lora_alpha)
    if gradient_checkpointing:
        checkpoint_layers(base, source.name)
    return model


def load_policy_base(source: ModelSource, *, dtype: torch.dtype, load_in_4bit: bool = False) -> Any:
    """The base of `source` as a policy, without its adapter. Raises BadInput where it is no language model."""
    config = load_config(source)
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if family is None:
        raise BadInput(f"--model {source.name}: '{config.model_type}' models are no language models. Use another.")
    return load_weights(_policy_class(family), source, config=config, dtype=dtype, load_in_4bit=load_in_4bit)


@functools.cache
def _policy_class(family: Any) -> Any:
    """The library's class, whose `forward` also takes `predictors` and `targets`."""
    plain = family.forward

    @functools.wraps(plain)  # generation asks the signature what the model takes
    def forward(self: Any, *args: Any, targets: Tensor | None = None, **options: Any) -> Any:
        if targets is None:
            return plain(self, *args, **options)
        return _log_probs_at(self, targets=targets, **options)

    return type(family.__name__, (family,), {"forward": forward})


def _log_probs_at(
    model: Any, *, input_ids: Tensor, attention_mask: Tensor, predictors: Tensor, targets: Tensor, **options: Any
) -> Tensor:
    """Log-prob of each target after the token at its predictor. Shapes: ids (B, T); both (N,), places in B*T; returns
    (N,)."""
    backbone = getattr(model, model.base_model_prefix)
    options = {name: options[name] for name in ("position_ids", "trees") if name in options}
    hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options).last_hidden_state
    return token_log_probs(hidden.flatten(0, 1)[predictors], targets, head=Head(model))


class Head(nn.Module):
    """What turns hidden states (N, d) into logits (N, V): the output layer, with its model's scale or cap."""

    def __init__(self, model: Any, *, temperature: float = 1.0) -> None:
        """`temperature` divides the logits, as it does in sampling."""
        super().__init__()
        config = model.config.get_text_config()
        self.layer: Any = model.get_output_embeddings()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        divisor = getattr(config, "logits_scaling", None) or 1.0
        factor = getattr(config, "logit_scale", None)
        self.scale = (1.0 if factor is None else factor) / divisor
        self.temperature = temperature

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.layer(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits if self.scale == 1.0 else logits * self.scale
        logits = logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
        return logits if self.temperature == 1.0 else logits / self.temperature


def token_log_probs(hidden: Tensor, targets: Tensor, *, head: Head) -> Tensor:
    """Log-softmax of the head's logits at the targets, in chunks. Shapes: hidden (N, d), targets (N,); returns (N,).

    Where the head is frozen, a chunk's gradient for its hidden states is taken at once, while its logits are at hand:
    it is a fixed direction for each token that the loss only scales. Where the head is trained too, a chunk's logits
    are computed again in the backward pass.
    """
    if torch.is_grad_enabled() and hidden.requires_grad and any(p.requires_grad for p in head.parameters()):
        width = _chunk_width(head)
        chunks = zip(torch.split(hidden, width), torch.split(targets, width), strict=True)
        found = [cast(Tensor, checkpoint(_at_targets, head, h, t, use_reentrant=False)) for h, t in chunks]
        return torch.cat(found) if found else hidden.new_zeros(0)
    return _through_frozen_head(hidden, targets, head=head, measure=_log_probs_alone, differentiated=1)[0]


def token_log_probs_and_entropies(
    hidden: Tensor, targets: Tensor, *, head: Head, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The log-probs as above, and the entropy in nats of what might have stood at each place. Shapes: each (N,).

    The head must be frozen. `entropy_gradient`: whether a loss will be taken of the entropies too.
    """
    measure = _log_probs_and_entropies if entropy_gradient else _log_probs_and_plain_entropies
    log_probs, entropies = _through_frozen_head(
        hidden, targets, head=head, measure=measure, differentiated=1 + entropy_gradient
    )
    return log_probs, entropies


def _chunk_width(head: Head) -> int:
    vocabulary: int = head.layer.weight.shape[0]
    return max(CHUNK_NUMBERS // vocabulary, 1)


def _at_targets(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(head(hidden), targets, reduction="none")


def _log_probs_alone(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (_at_targets(head, hidden, targets),)


def _log_probs_and_entropies(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    every = head(hidden).log_softmax(dim=-1)
    return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(dim=-1)


def _log_probs_and_plain_entropies(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Entropies that no gradient goes through: nothing the size of the logits is kept for them."""
    every = head(hidden).log_softmax(dim=-1)
    plain = every.detach()
    return every.gather(1, targets[:, None])[:, 0], -plain.exp().mul_(plain).sum(dim=-1)


def _through_frozen_head(
    hidden: Tensor, targets: Tensor, *, head: Head, measure: Any, differentiated: int
) -> tuple[Tensor, ...]:
    """What `measure` finds, chunk by chunk; the first `differentiated` of it can be differentiated."""
    if not len(hidden):
        return tuple(hidden.new_zeros(0) for _ in measure(head, hidden, targets))
    if torch.is_grad_enabled() and hidden.requires_grad:
        found = _FrozenHead.apply(hidden, targets, head, measure, differentiated)  # type: ignore[no-untyped-call]
        return cast(tuple[Tensor, ...], found)
    width = _chunk_width(head)
    chunks = zip(torch.split(hidden, width), torch.split(targets, width), strict=True)
    return tuple(map(torch.cat, zip(*(measure(head, h, t) for h, t in chunks), strict=True)))


class _FrozenHead(torch.autograd.Function):
    """`measure` in chunks, with the gradients for the hidden states kept instead of logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, measure: Any, differentiated: int
    ) -> tuple[Tensor, ...]:
        directions = [torch.empty_like(hidden) for _ in range(differentiated)]
        width = _chunk_width(head)
        found = []
        for start in range(0, len(hidden), width):
            with torch.enable_grad():
                part = hidden[start : start + width].detach().requires_grad_()
                chunk = measure(head, part, targets[start : start + width])
                for n, direction in enumerate(directions):
                    more = n + 1 < differentiated
                    (direction[start : start + width],) = torch.autograd.grad(chunk[n].sum(), part, retain_graph=more)
            found.append([measured.detach() for measured in chunk])
        ctx.save_for_backward(*directions)
        measured = tuple(map(torch.cat, zip(*found, strict=True)))
        ctx.mark_non_differentiable(*measured[differentiated:])
        return measured

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        directions = ctx.saved_tensors
        total = gradients[0][:, None] * directions[0]
        for gradient, direction in zip(gradients[1:], directions[1:], strict=False):
            total = total + gradient[:, None] * direction
        return total.to(directions[0].dtype), None, None, None, None


@contextmanager
def reference_of(model: Any) -> Iterator[None]:
    """While entered, the policy answers as it did before training: its adapters are off."""
    with model.disable_adapter():
        yield


@torch.no_grad()
def check_log_probs(model: Any, row: tuple[int, ...], *, name: str) -> None:
    """Refuse a model whose log-probs, as computed here, are not those of its own logits. Raises BadInput."""
    training = model.training
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base.eval()
    ids = torch.tensor([row[:64]], device=next(base.parameters()).device)
    mask = torch.ones_like(ids)
    logits = base(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, :-1]
    expected = -cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), ids[0, 1:], reduction="none")
    places = torch.arange(ids.shape[1] - 1, device=ids.device)
    found = base(input_ids=ids, attention_mask=mask, predictors=places, targets=ids[0, 1:])
    base.train(training)
    worst = float((found - expected).abs().max())
    if not worst <= max(1e-3, 0.05 * float(expected.abs().mean()) if logits.dtype == torch.bfloat16 else 1e-3):
        raise BadInput(
            f"--model {name}: its log-probs come out differently ({worst:.2g}) from those of its own logits; "
            f"'{base.config.model_type}' models cannot be trained here. Use another."
        )
