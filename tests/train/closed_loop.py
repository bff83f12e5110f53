"""The whole loop on a known judge: a model writes, noisy annotators rank, a reward model learns, and PPO by that.

The gold is VADER's score. Annotators see it with noise. Policies are measured by the gold of what they write to
openings that nothing was trained on, and by their KL divergence from the start.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from data.records import Message
from tests.train.gold import Judged, gold_of, openings, texts_of, write, write_rankings
from train.__main__ import main
from train.chat import encode_prompt
from train.health import Health
from train.layouts import PaddedRows
from train.models import load_adapter, load_tokenizer, resolve
from train.policies import load_policy_base

PROMPTS, HELD_OUT = 1500, 200
NEW_TOKENS = 40
NOISE = 0.2
"""Standard deviation of what an annotator sees beside the gold, half of the gold's own."""
RM_RECIPE = {"learning_rate": "1e-3", "per_device_train_batch_size": "8", "lora_r": "16"}


def gold(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """For `--gold tests.train.closed_loop:gold`."""
    return list(gold_of(responses))


@dataclass(frozen=True)
class Measured:
    """What a policy writes to held-out openings. `gold`, `spread`: mean and deviation; `kl`: nats a response (k1)."""

    gold: float
    spread: float
    best_of_4: float
    kl: float
    tokens: float


@dataclass(frozen=True)
class Loop:
    """One seed's loop in `folder`, on the writer `base`."""

    base: Path
    folder: Path
    seed: int

    @cached_property
    def openings(self) -> list[str]:
        return openings(PROMPTS + HELD_OUT, seed=self.seed)

    @cached_property
    def ranked(self) -> Path:
        """Four responses of the start to each opening, ranked by what annotators see."""
        told = write(
            self.base,
            self.openings[:PROMPTS],
            self.folder / "own.jsonl",
            samples=4,
            new_tokens=NEW_TOKENS,
            seed=self.seed,
        )
        chance = random.Random(self.seed)
        judged = []
        for prompt, row in zip(self.openings[:PROMPTS], told, strict=True):
            texts = tuple(texts_of(row))
            judged.append(Judged(prompt, texts, tuple(g + chance.gauss(0, NOISE) for g in gold_of(texts))))
        return write_rankings(self.folder / "ranked.jsonl", judged)

    @cached_property
    def reward(self) -> Path:
        """The run of `rm` on these rankings."""
        return self.train("rm", "reward", RM_RECIPE)

    def train(self, stage: str, name: str, flags: dict[str, str]) -> Path:
        run = self.folder / name
        common = {
            "model": str(self.base),
            "data": str(self.ranked),
            "output": str(run),
            "workspace": str(self.folder),
            "seed": str(self.seed),
            "save_steps": "10000",
        }
        assert main([stage, *(text for k, v in {**common, **flags}.items() for text in (f"--{k}", v))]) == 0
        return run

    def measure(self, model: Path, *, samples: int = 4) -> Measured:
        """The same chance decides what each of the compared models writes."""
        held_out = self.openings[PROMPTS:]
        out = self.folder / f"by-{model.name}.jsonl"
        rows = write(model, held_out, out, samples=samples, new_tokens=NEW_TOKENS, seed=1000 + self.seed)
        golds = [gold_of(texts_of(row)) for row in rows]
        flat = [value for own in golds for value in own]
        lengths = [n for row in rows for n in row["metadata"]["generation"]["tokens"]]
        kl = 0.0 if model == self.base else divergence(model, held_out, seed=self.seed, folder=self.folder)
        return Measured(mean(flat), stdev(flat), mean(map(max, golds)), kl, mean(lengths))


def divergence(run: Path, prompts: Sequence[str], *, seed: int, folder: Path) -> float:
    """From the start, over one response to each prompt: nats a response."""
    source = resolve(str(run), workspace=folder)
    tokenizer = load_tokenizer(source)
    policy = load_adapter(load_policy_base(source, dtype=torch.float32), source).eval()
    asked = [encode_prompt(tokenizer, [Message("user", prompt)]) for prompt in prompts]
    health = Health(tokenizer, asked, max_new_tokens=NEW_TOKENS, seed=seed)
    return health.measure(policy, PaddedRows(8192))["kl"]


def facts(run: Path) -> dict[str, Any]:
    """eval.json."""
    return dict(json.loads((run / "eval.json").read_text()))
