"""Rewards of mean 0 and standard deviation 1 on the training responses, within the head's own weights.

A Bradley-Terry loss leaves the rewards' level and scale open; PPO wants them fixed (Ziegler et al. 2019; Huang et al.
2024, detail 4.1). The scale divides the head. The level needs a bias, which the plain sequence classifiers do not have,
so it goes into the weights along the direction in which the scored states differ least: there all of them are nearly
equal, and a multiple of that direction shifts every reward by nearly the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import BadInput
from train.files import write_json
from train.groups import Group
from train.layouts import Layout, score_groups
from train.rewards import Float32Head

log = logging.getLogger(__name__)

FILE = "normalization.json"
MAX_PROMPTS = 1000
"""Mean and deviation of so many prompts' responses are known to one or two hundredths."""
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MAX_DISTORTION = 0.1
"""What the shift may change of a reward's distance to the others of its prompt, root mean square, in deviations."""


@dataclass(frozen=True)
class Normalization:
    """What was done.

    `std_before` is the scale at which a difference of rewards is the logit of a preference: loss and calibration are
    computed there. `distortion`: root mean square change of rewards within a prompt, in standard deviations.
    """

    responses: int
    mean_before: float
    std_before: float
    mean: float
    std: float
    distortion: float


def write_normalization(found: Normalization | None, adapter: Path) -> None:
    """Keep it with the model."""
    if found is not None:
        write_json(adapter / FILE, asdict(found))


def logit_scale(model: Path | None) -> float:
    """What turns a difference of rewards of this model or adapter folder into a logit; 1 where nothing was changed."""
    path = model / FILE if model else None
    if path is None or not path.exists():
        return 1.0
    return float(json.loads(path.read_text(encoding="utf-8"))["std_before"])


def normalize_rewards(model: nn.Module, groups: Sequence[Group], layout: Layout) -> Normalization | None:
    """Change the head so that these groups' rewards have mean 0 and deviation 1. None where all rewards are equal."""
    states, prompts = _scored_states(model, groups[:: -(-len(groups) // MAX_PROMPTS)], layout)
    head = _trained_head(model)
    weight = head.weight.detach()[0].cpu().double()  # in this order: not every device has float64
    before = states @ weight
    if not torch.isfinite(before).all():
        raise BadInput("the trained rewards are no finite numbers. Train again with a lower --learning_rate.")
    if not before.std(correction=0) > 1e-6:
        log.info("rewards are not normalized: all of them are equal")
        return None
    scaled = weight / before.std(correction=0)
    level = (states @ scaled).mean()
    distortion, ridge = min((_distortion(states, prompts, level=level, ridge=r), r) for r in _RIDGES)
    shifted = scaled - level * _even_direction(states, ridge=ridge)
    shifted /= (states @ shifted).std(correction=0)
    chosen = shifted if distortion <= _MAX_DISTORTION else scaled
    with torch.no_grad():
        head.weight.copy_(chosen[None].to(head.weight.dtype))
    after = states @ chosen
    found = Normalization(
        responses=len(states),
        mean_before=float(before.mean()),
        std_before=float(before.std(correction=0)),
        mean=float(after.mean()),
        std=float(after.std(correction=0)),
        distortion=distortion if chosen is shifted else 0.0,
    )
    if chosen is scaled:
        log.info("the rewards' mean stays at %.3f: shifting it would have changed their order", found.mean)
    return found


def _scored_states(model: nn.Module, groups: Sequence[Group], layout: Layout) -> tuple[Tensor, Tensor]:
    """What the head reads at each scored token, and the prompt each belongs to. Shapes (N, d) and (N,), float64."""
    caught: list[Tensor] = []
    handle = _trained_head(model).register_forward_hook(lambda head, inputs, output: caught.append(inputs[0]))
    training = model.training
    model.eval()
    try:
        numbers = [n for number, rewards in score_groups(model, groups, layout) for n in [number] * len(rewards)]
    finally:
        handle.remove()
        model.train(training)
    return torch.cat(caught).cpu().double(), torch.tensor(numbers)


def _distortion(states: Tensor, prompts: Tensor, *, level: Tensor, ridge: float) -> float:
    """How much taking out `level` changes distances within prompts that the direction was not fitted to, in deviations.

    The direction of every second prompt's states is tried on the others: where states are fewer than dimensions it
    fits its own perfectly.
    """
    fitted = prompts % 2 == 0
    tried = ~fitted if (~fitted).any() else fitted
    moved = level * (states[tried] @ _even_direction(states[fitted], ridge=ridge))
    return float(_within(moved, prompts[tried]).square().mean().sqrt())


def _even_direction(states: Tensor, *, ridge: float) -> Tensor:
    """The direction with mean 1 over the states along which they vary least. Shape (d,).

    That is C^-1 m / (m' C^-1 m) with mean m and covariance C, plus `ridge` times its average variance everywhere, so
    that fewer states than dimensions do.
    """
    mean = states.mean(dim=0)
    centred = states - mean
    covariance = centred.T @ centred / len(states)
    covariance += torch.eye(len(mean), dtype=states.dtype) * (ridge * covariance.diagonal().mean() + 1e-12)
    direction: Tensor = torch.linalg.solve(covariance, mean)
    return direction / torch.dot(mean, direction)


def _within(values: Tensor, prompts: Tensor) -> Tensor:
    """Values less their prompt's mean. Shape as given."""
    sums = torch.zeros(int(prompts.max()) + 1, dtype=values.dtype)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, prompts, values)
    counts.index_add_(0, prompts, torch.ones_like(values))
    means: Tensor = (sums / counts)[prompts]
    return values - means


def _trained_head(model: Any) -> Float32Head:
    return next(m for m in model.modules() if isinstance(m, Float32Head) and m.weight.requires_grad)
