"""What writes PPO's responses: the actor in this process, or a server that is given its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from train.ppo_config import PpoConfig
from train.processes import barrier, is_main
from train.roles import Roles
from train.rollouts import Prompt
from train.sampling import Sample, Sampling, sample_all, stop_tokens

ADAPTER = "rollout_adapter"
"""In the run folder: the adapter that a server was given last."""


class RolloutEngine(Protocol):
    """The loop knows no more than this."""

    def write(self, prompts: Sequence[Prompt], config: Sampling) -> list[list[Sample]]:
        """`config.samples` responses to each prompt, by the actor as it is now. Raises BadInput."""


class Server(Protocol):
    """What holds the base in another process."""

    def reload(self, adapter: Path, name: str) -> None:
        """Take this adapter from now on."""

    def write(self, prompts: Sequence[Sequence[int]], *, config: Sampling) -> list[list[Sample]]:
        """Responses to token ids."""


@dataclass(frozen=True)
class LocalEngine:
    """The actor writes them itself, with a key-value cache, prompts of similar length together."""

    roles: Roles
    tokenizer: PreTrainedTokenizerBase

    def write(self, prompts: Sequence[Prompt], config: Sampling) -> list[list[Sample]]:
        self.roles.model.eval()
        with self.roles.played("actor"):
            return sample_all(self.roles.model, self.tokenizer, [p.ids for p in prompts], config=config, quiet=True)


@dataclass(frozen=True)
class RemoteEngine:
    """A server writes them; it is handed the actor's adapter first."""

    roles: Roles
    server: Server
    folder: Path

    def write(self, prompts: Sequence[Prompt], config: Sampling) -> list[list[Sample]]:
        if is_main():
            self.roles.save_adapter("actor", self.folder)
            self.server.reload(self.folder, "actor")
        barrier()
        return self.server.write([p.ids for p in prompts], config=config)


def engine_of(config: PpoConfig, roles: Roles, tokenizer: PreTrainedTokenizerBase, *, run: Path) -> RolloutEngine:
    """What --rollout_engine names. Raises BadInput where a server does not answer as it must."""
    if config.rollout_engine == "transformers":
        return LocalEngine(roles, tokenizer)
    from train.rollout_server import ServerEngine

    stops = stop_tokens(tokenizer, roles.model)
    server = ServerEngine(config.rollout_url, model=config.rollout_model, stops=stops, tokenizer=tokenizer)
    return RemoteEngine(roles, server, (run / ADAPTER).resolve())
