"""What both sides of the PPO benchmark are given: a reward model, prompts, settings, and where it is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.callbacks import weights_from_seed
from benchmarks.sides import Turns
from data.errors import BadInput
from data.records import Message, PromptRecord
from train import report
from train.chat import encode_prompt
from train.generate import read_prompts
from train.merge import merged_model
from train.models import ModelSource, load_tokenizer, resolve
from train.ppo_config import PpoConfig
from train.rewards import new_reward_model
from train.rollouts import Prompt

ADAM_EPSILON = 1e-5
"""Our optimiser's; the peer is given the same."""


def prepare(turns: Turns) -> None:
    """What both sides are given: a reward model, prompts, our settings, and for the gradient an actor and responses."""
    work = Work(turns.work)
    turns.answer()
    if turns.wait():
        make_reward_model(work)
        # The last update has the prompts of the first: there the rewards before and after are compared.
        different = max(work.updates - 1, 1)
        batches = (
            work.real_prompts(different) if work.prompts_file else [work.made_prompts(n) for n in range(different)]
        )
        batches += batches[: work.updates - different]
        work.prompts.write_text(json.dumps(batches), encoding="utf-8")
        work.responses_file.write_text(json.dumps(work.made_responses()), encoding="utf-8")
        config = work.config()
        turns.answer(
            base=work.source.base,
            classifier=str(work.classifier),
            actor=str(work.actor),
            prompts=str(work.prompts),
            responses_file=str(work.responses_file),
            settings={name: value for name, value in vars(config).items() if not isinstance(value, Path)}
            | {"adam_epsilon": ADAM_EPSILON},
        )
    turns.wait()
    turns.close()


class Work:
    """What a side was given, resolved. `folder` is the side's own, the rest the case's."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.case: dict[str, int] = given["case"]
        self.updates = int(given["updates"])
        self.learning_rate = float(given["learning_rate"])
        self.prompts_file: str = given["prompts_file"]
        """Where real prompts stand, whose responses end where the model ends them; empty where they are made up."""
        self.folder = Path(given["folder"])
        common = Path(given["common"])
        self.reward, self.classifier = common / "reward", common / "classifier"
        self.actor, self.prompts = common / "actor.safetensors", common / "prompts.json"
        self.responses_file = common / "responses.json"
        self.source: ModelSource = resolve(given["model"], workspace=Path(given["workspace"]))
        self.tokenizer = load_tokenizer(self.source)
        special = set(self.tokenizer.all_special_ids)
        self.letters = [i for i in range(len(self.tokenizer)) if i not in special]
        torch.set_num_threads(int(given["threads"]))

    def config(self, **changes: Any) -> PpoConfig:
        """The defaults of `python -m train ppo`, less what TRL has not: clipping of gradients, a penalty for no EOS."""
        settings: dict[str, Any] = {
            "model": self.source.name,
            "data": Path("made.jsonl"),
            "output": self.folder / "run",
            "reward": str(self.reward),
            "per_device_train_batch_size": self.case["prompts"],
            "samples": self.case["samples"],
            "max_new_tokens": self.case["r"],
            "max_steps": self.updates,
            "learning_rate": self.learning_rate,
            "max_grad_norm": 0.0,
            "missing_eos_penalty": 0.0,
            "hacking_alarm": 0.0,
            "eval_prompts": 0,
            "save_steps": 10**9,
        }
        return PpoConfig(**{**settings, **changes})

    def made_prompts(self, seed: int) -> list[list[int]]:
        """Prompts of half to all of the case's longest length, and one of that."""
        chance = random.Random(seed)  # noqa: S311 - data, not secrets
        longest = self.case["p"]
        lengths = [longest, *(chance.randint(max(longest // 2, 1), longest) for _ in range(self.case["prompts"] - 1))]
        return [chance.choices(self.letters, k=length) for length in lengths]

    def real_prompts(self, batches: int) -> list[list[list[int]]]:
        """Different prompts of the file, none longer than the case allows. Raises BadInput where there are too few."""
        records = {r.prompt_hash: r for r in read_prompts(Path(self.prompts_file))}.values()
        encoded = [encode_prompt(self.tokenizer, r.prompt) for r in records]
        fitting = [ids for ids in encoded if len(ids) <= self.case["p"]]
        size = self.case["prompts"]
        if len(fitting) < batches * size:
            raise BadInput(
                f"{self.prompts_file}: {len(fitting)} different prompts of at most {self.case['p']} tokens, and "
                f"{batches * size} are needed. Ask for fewer prompts or --updates, or raise P."
            )
        chosen = random.Random(0).sample(fitting, batches * size)  # noqa: S311 - data, not secrets
        return [chosen[n : n + size] for n in range(0, len(chosen), size)]

    def made_responses(self) -> list[list[int]]:
        """As many as an update has, all of full length."""
        chance = random.Random(-1)  # noqa: S311
        count = self.case["prompts"] * self.case["samples"]
        return [chance.choices(self.letters, k=self.case["r"]) for _ in range(count)]

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of one update, counted from 1."""
        batch: Sequence[Sequence[int]] = json.loads(self.prompts.read_text(encoding="utf-8"))[step - 1]
        return [
            Prompt(PromptRecord((Message("user", "made"),), (), id=f"made-{step}-{n}"), tuple(ids))
            for n, ids in enumerate(batch)
        ]

    def every_prompt(self) -> list[Prompt]:
        """Those of all updates, in order."""
        return [prompt for step in range(1, self.updates + 1) for prompt in self.batch(step)]

    def actor_weights(self) -> dict[str, Tensor]:
        """An actor that has learned something already."""
        return load_file(self.actor)


def make_reward_model(work: Work) -> None:
    """An adapter and head that nobody trained, as our side takes them, and merged into a model, as the peer does.

    Its adapter serves as an actor's, too, where the gradients are compared.
    """
    config = work.config()
    model = new_reward_model(work.source, lora_r=config.lora_r, lora_alpha=config.lora_alpha, dtype=torch.float32)
    weights_from_seed(model, seed=config.seed)
    report.save_adapter(model, work.tokenizer, work.reward)
    adapter = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}
    save_file({n.replace(".default.", "."): p.clone() for n, p in adapter.items()}, work.actor)
    merged = merged_model(resolve(str(work.reward), workspace=work.folder), work.tokenizer)
    report.save_model(merged, work.tokenizer, work.classifier)
