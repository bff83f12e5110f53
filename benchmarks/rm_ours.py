"""Our side of the reward-model benchmark, and the bare loop over the same tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from benchmarks.rm_callbacks import KeptGradient, Paced, save_gradient
from benchmarks.rm_cases import Case, made_rows
from benchmarks.sides import Turns
from data.comparisons import expand
from data.notation import Ranking
from train.configs import RmConfig
from train.groups import Group
from train.interrupt import Interrupt
from train.layouts import choose
from train.models import ModelSource, load_config, load_tokenizer, resolve
from train.progress import RunProgress
from train.reward_trainer import RewardTrainer
from train.rewards import let_signals_in, new_reward_model
from train.rm import arguments_of, objective_of
from train.run import Run


class Work:
    """What a worker was given, resolved: the case, the model and the ids to make rows of."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.case = Case(*given["case"])
        self.folder = Path(given["folder"])
        self.steps = int(given["steps"])
        self.micro_batch = int(given.get("micro_batch", 1))
        self.padding: int | str | None = given.get("padding")
        self.source: ModelSource = resolve(given["model"], workspace=Path(given["workspace"]))
        self.tokenizer = load_tokenizer(self.source)
        size = min(len(self.tokenizer), load_config(self.source).get_text_config().vocab_size)
        special = set(self.tokenizer.all_special_ids)
        self.letters = [i for i in range(size) if i not in special]
        torch.set_num_threads(int(given["threads"]))

    def rows(self, seed: int) -> list[list[int]]:
        """The rows of one made prompt; the same on every side."""
        return made_rows(self.case, letters=self.letters, eos=self.tokenizer.eos_token_id, seed=seed)

    def config(self, **changes: Any) -> RmConfig:
        """The settings of `python -m train rm`, one prompt a step; the peer takes its own from here too."""
        unused = Path("made.jsonl")
        return RmConfig(
            model=self.source.name,
            data=unused,
            output=self.folder / "run",
            per_device_train_batch_size=1,
            max_steps=self.steps,
            save_steps=10**9,  # neither side saves
            **changes,
        )


def ours(turns: Turns) -> None:
    """Train a step a turn."""
    work = Work(turns.work)
    trainer = _trainer(work, work.config(), prompts=work.steps)
    trainer.add_callback(Paced(turns, layout=type(trainer.layout).__name__))
    trainer.train()
    turns.close()


def gradient_ours(turns: Turns) -> None:
    """The gradient that our trainer hands to its optimiser for the first prompt, into `turns.work["gradient"]`."""
    work = Work(turns.work)
    kept = KeptGradient()
    trainer = _trainer(work, work.config(max_grad_norm=0.0), prompts=1)  # 0: not clipped
    trainer.add_callback(kept)
    turns.answer()
    if turns.wait():
        trainer.train()
        save_gradient(kept.grads, Path(turns.work["gradient"]))
        turns.answer(parameters=len(kept.grads))
    turns.wait()
    turns.close()


def bare(turns: Turns) -> None:
    """One row of the same tokens through the same model, forward and backward, without trainer or optimiser."""
    work = Work(turns.work)
    case = work.case
    model = _model(work, work.config()).train()
    classifier = model.get_base_model()
    backbone = getattr(classifier, classifier.base_model_prefix)
    ends = torch.tensor([case.p + n * case.r - 1 for n in range(1, case.k + 1)])
    turns.answer()
    seed = 0
    while turns.wait():
        rows = work.rows(seed)
        row = torch.tensor([rows[0][: case.p] + [i for r in rows for i in r[case.p :]]])
        began = time.perf_counter()
        hidden = backbone(input_ids=row, use_cache=False).last_hidden_state
        hidden[0, ends].square().sum().backward()
        model.zero_grad()
        turns.answer(seconds=time.perf_counter() - began)
        seed += 1
    turns.close()


def group_of(rows: Sequence[list[int]], *, shared: int) -> Group:
    """Rows, best first, as a prompt that one annotator ranked."""
    ranking = Ranking(tuple((n,) for n in range(1, len(rows) + 1)))
    return Group(
        prompt_id="made",
        rows=tuple(map(tuple, rows)),
        chars=tuple(map(len, rows)),
        rankings=(ranking,),
        comparisons=expand(ranking, len(rows)).comparisons,
        shared=shared,
        annotators=("made",),
    )


def _model(work: Work, config: RmConfig) -> Any:
    set_seed(config.seed)
    return new_reward_model(work.source, lora_r=config.lora_r, lora_alpha=config.lora_alpha, dtype=torch.float32)


def _trainer(work: Work, config: RmConfig, *, prompts: int) -> RewardTrainer:
    """As `python -m train rm` makes it, on made groups."""
    groups = [group_of(work.rows(seed), shared=work.case.p) for seed in range(prompts)]
    model = _model(work, config)
    let_signals_in(model)
    run = Run.create(config.output, stage="rm", config={})
    interrupt = Interrupt()
    trainer = RewardTrainer(
        model=model,
        args=arguments_of(config, run.path, evaluates=False),
        layout=choose(model, groups, packing=config.packing, tokens_per_forward=config.tokens_per_forward),
        objective=objective_of(config),
        train_dataset=groups,
        held_out=[],
        interrupt=interrupt,
        callbacks=[RunProgress(run, interrupt)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
