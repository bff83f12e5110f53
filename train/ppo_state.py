"""All that a PPO run needs to go on as if it had never stopped, in safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import BadInput
from train.checkpoints import new_checkpoint
from train.files import write_json
from train.kl_penalty import KlController
from train.roles import Roles

TENSORS = "state.safetensors"
INSIDE = "inside.safetensors"
FACTS = "trainer_state.json"


@dataclass(frozen=True)
class State:
    """After `step` complete steps: adapters, heads, optimiser and chance as copies, and plain facts."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Inside:
    """What is trained, by name, as it was after `step` steps: the last policy seen inside the KL budget."""

    step: int
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """What changes while PPO runs. Prompts and seeds follow from the step."""

    roles: Roles
    optimizer: torch.optim.Optimizer
    scheduler: Any
    controller: KlController

    def capture(self, step: int) -> State:
        """A copy of it all."""
        tensors = {f"model.{name}": value for name, value in self.roles.state().items()}
        facts: dict[str, Any] = {"global_step": step, "kl_coef": self.controller.coef}
        for number, p in enumerate(self._trained()):
            for name, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{number}.{name}"] = (
                    torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
                )
        tensors["chance.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["chance.cuda"] = torch.cuda.get_rng_state()
        facts["scheduler"] = {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"}
        return State(step, tensors, facts)

    def restore(self, folder: Path) -> int:
        """Take up a checkpoint; returns its step. Raises BadInput where it is sealed and yet of another kind."""
        tensors = _read(folder, TENSORS)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.roles.load_state({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for number, p in enumerate(self._trained()):
            prefix = f"optimizer.{number}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if own:  # Adam keeps its count of steps on the CPU
                self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in own.items()}
        torch.set_rng_state(tensors["chance.cpu"])
        if torch.cuda.is_available() and "chance.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["chance.cuda"])
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **facts["scheduler"]})
        for group, rate in zip(self.optimizer.param_groups, facts["scheduler"]["_last_lr"], strict=True):
            group["lr"] = rate
        self.controller.coef = facts["kl_coef"]
        return int(facts["global_step"])

    def _trained(self) -> list[Any]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def save_state(state: State, run: Path, *, inside: Inside | None) -> None:
    """`checkpoint-N`, sealed. Raises BadInput where the disk takes no more."""
    folder = run / f"checkpoint-{state.step}"
    with new_checkpoint(folder):
        folder.mkdir()
        save_file(dict(state.tensors), folder / TENSORS)
        if inside is not None:
            save_file(dict(inside.weights), folder / INSIDE)
        write_json(folder / FACTS, {**state.facts, "inside_step": None if inside is None else inside.step})


def read_inside(folder: Path) -> Inside | None:
    """What a checkpoint knows of a policy inside the KL budget. Raises BadInput as `restore` does."""
    step = json.loads((folder / FACTS).read_text(encoding="utf-8")).get("inside_step")
    return None if step is None else Inside(step, _read(folder, INSIDE))


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / name)
    except (FileNotFoundError, SafetensorError) as error:
        raise BadInput(
            f"{folder}: {name} is not what this program writes ({error}), and nothing in it was run. Delete the "
            "checkpoint and find out who wrote it."
        ) from None
