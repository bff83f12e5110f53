"""The peer's side of the PPO benchmark: TRL's PPOTrainer, as its own example sets it up, at its fastest.

Runs in an interpreter of its own, the last TRL that has this trainer being older than the one the other benchmarks
compare with. So it imports nothing of `train`: what our side decides (settings, prompts, reward model) reaches it in
`Turns.work`.

The trainer takes an optimiser step for every micro-batch of its data loader's last batch, accumulation or not, since
accelerate tells it that the data are at an end. Here that batch is never reached: there are more prompts than updates.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
)
from transformers.utils import logging
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.trainer.utils import selective_log_softmax

from benchmarks.callbacks import gradient_error, train_in_turns
from benchmarks.cases import MICRO_BATCHES
from benchmarks.sides import Turns

warnings.filterwarnings("ignore", category=FutureWarning)  # TRL asks for gradient_checkpointing under its older name
logging.set_verbosity_error()  # and gives generation settings in two places

VERSIONS = ("trl", "torch", "transformers", "peft", "accelerate", "datasets")
PHASES = ("writing", "scoring", "learning")


def peer(turns: Turns) -> None:
    """An update a turn."""
    _take_turns(turns, **turns.work["peer"])


def peer_lean(turns: Turns) -> None:
    """The same with one response at a time where it learns: its smallest memory. The second pass holds the most."""
    _take_turns(turns, **{**turns.work["peer"], "micro_batch": 1}, num_ppo_epochs=2)


def sweep(turns: Turns) -> None:
    """Seconds an update of writing and of learning, for some sizes of each: one pass over the responses instead of all.

    The sizes are tried together, for neither phase knows the other's. A first round warms the process up.
    """
    work = turns.work
    count = int(work["responses"])
    sizes = [n for n in MICRO_BATCHES if count % n == 0]
    written = [count // n for n in (1, 2, 4) if count % n == 0]
    trainer = _trainer(work, micro_batch=sizes[0], written=written[0], num_ppo_epochs=1, updates=1)
    watch = Watch(trainer)
    turns.answer()
    if turns.wait():
        tried = [(size, written[n % len(written)]) for n, size in enumerate(sizes)]
        found = []
        for micro_batch, at_once in [tried[0], *tried]:
            _set_sizes(trainer, micro_batch=micro_batch, written=at_once)
            watch.begin()
            trainer.train()
            found.append({"micro_batch": micro_batch, "written": at_once, **watch.seconds(passes=work["passes"])})
        turns.answer(sweep=found[1:])
    turns.wait()
    turns.close()


def gradient_peer(turns: Turns) -> None:
    """The gradient of the first pass over given responses, from given weights, beside ours.

    Both trainers whiten the advantages, TRL with the sample's variance, ours with the population's. Where no ratio has
    moved yet the gradient is proportional to the advantages, so that the factor between them can be taken out.
    """
    work = turns.work
    trainer = _trainer(work, micro_batch=1, written=int(work["responses"]), num_ppo_epochs=1, updates=1)
    set_peft_model_state_dict(trainer.policy_model, load_file(work["actor"]))
    responses = torch.tensor(json.loads(Path(work["responses_file"]).read_text(encoding="utf-8")))
    ppo_trainer.batch_generation = _given(responses)
    grads: dict[str, Tensor] = {}

    def keep(*unused: Any) -> None:
        for name, p in trainer.policy_model.named_parameters():
            if p.grad is not None:
                grads[name.replace(".default.", ".")] = p.grad.clone()
        heads = [p for name, p in trainer.value_model.named_parameters() if "score." in name and p.grad is not None]
        (grads["value_head"],) = (head.grad.clone() for head in heads)

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    turns.answer()
    if turns.wait():
        trainer.train()
        tokens = responses.numel()
        unwhitened = {n: g * (1 if n == "value_head" else (tokens / (tokens - 1)) ** 0.5) for n, g in grads.items()}
        error, where = gradient_error(Path(work["gradient"]), unwhitened)
        turns.answer(max_grad_rel_err=error, where=where, parameters=len(grads))
    turns.wait()
    turns.close()


class Watch:
    """When the parts of an update began, and what was written in it. Stands around what TRL calls."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer
        self._generate = ppo_trainer.batch_generation
        ppo_trainer.batch_generation = self._written
        self._accumulate = trainer.accelerator.accumulate
        trainer.accelerator.accumulate = self._learned
        trainer.optimizer.optimizer.register_step_pre_hook(self._stepped)
        self.begin()

    def begin(self) -> None:
        """Forget the last update."""
        self._marks: list[float] = []
        self.tokens = self.optimizer_steps = 0

    def seconds(self, *, passes: int = 1) -> dict[str, float]:
        """Of each part; what learns is multiplied by `passes`."""
        marks = [*self._marks, time.perf_counter()]
        parts = [later - earlier for earlier, later in pairwise(marks)]
        parts[-1] *= passes
        return {f"seconds_{name}": seconds for name, seconds in zip(PHASES, parts, strict=True)}

    def found(self) -> dict[str, Any]:
        """Of the update that has just ended; the next one begins."""
        last = self.trainer.state.log_history[-1]
        found = {
            **self.seconds(),
            "response_tokens": self.tokens,
            "optimizer_steps": self.optimizer_steps,
            "reward": last["objective/scores"],
            "kl": last["objective/kl"],
        }
        self.begin()
        return found

    def _written(self, model: Any, queries: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        self._marks = [time.perf_counter()]  # until now it may have waited for its turn
        sequences, logits = self._generate(model, queries, *others)
        responses = sequences[:, queries.shape[1] :]
        stop = self.trainer.stop_token_id
        ended = torch.zeros_like(responses, dtype=torch.bool) if stop is None else responses == stop
        kept = ended.cumsum(1) - ended.long() == 0  # up to the first end, which counts
        self.tokens = int(kept.sum())
        self._marks.append(time.perf_counter())
        return sequences, logits

    def _learned(self, *models: Any) -> Any:
        if len(self._marks) < len(PHASES):
            self._marks.append(time.perf_counter())
        return self._accumulate(*models)

    def _stepped(self, *unused: Any) -> None:
        self.optimizer_steps += 1


def _take_turns(turns: Turns, *, micro_batch: int, written: int, num_ppo_epochs: int = 0) -> None:
    trainer = _trainer(turns.work, micro_batch=micro_batch, written=written, num_ppo_epochs=num_ppo_epochs)
    watch = Watch(trainer)
    versions = {name: version(name) for name in VERSIONS}
    train_in_turns(turns, trainer, also=watch.found, versions=versions, python=sys.version.split()[0])


def _given(responses: Tensor) -> Any:
    """In place of TRL's generation: these responses, with the logits that writing them would have left."""

    @torch.no_grad()
    def generation(policy: Any, queries: Tensor, at_once: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        sequences = torch.cat((queries, responses), dim=1)
        logits = ppo_trainer.forward(policy, sequences, pad).logits[:, queries.shape[1] - 1 : -1]
        return sequences, logits / config.temperature

    return generation


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """TRL's. Where all responses written together end early they are filled up with [PAD], for which there is no logit;
    TRL masks these places afterwards."""
    return selective_log_softmax(logits, tokens.clamp(max=logits.shape[-1] - 1))


def _set_sizes(trainer: PPOTrainer, *, micro_batch: int, written: int) -> None:
    """Other batch sizes for the next call of `train`."""
    args, accelerator = trainer.args, trainer.accelerator
    args.per_device_train_batch_size = micro_batch
    args.gradient_accumulation_steps = accelerator.gradient_accumulation_steps = args.local_batch_size // micro_batch
    args.local_rollout_forward_batch_size = written
    accelerator.step = 0


def _trainer(
    work: dict[str, Any], *, micro_batch: int, written: int, updates: int = 0, num_ppo_epochs: int = 0
) -> PPOTrainer:
    """TRL's trainer under our settings, in float32, nothing recomputed, saved or reported.

    `micro_batch`: responses learned from at a time; `written`: responses written and scored at a time.
    """
    torch.set_num_threads(int(work["threads"]))
    settings, updates = work["settings"], updates or int(work["updates"])
    tokenizer = _tokenizer(work)
    batch = int(work["responses"])
    shared = {name: settings[name] for name in SHARED}
    args = PPOConfig(
        output_dir=str(Path(work["folder"], "run")),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch // micro_batch,
        local_rollout_forward_batch_size=written,
        total_episodes=updates * batch,
        response_length=settings["max_new_tokens"],
        stop_token="eos" if work["prompts_file"] else None,  # without, every response is as long as asked
        missing_eos_penalty=None,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        warmup_steps=settings["warmup_ratio"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{**shared, "num_ppo_epochs": num_ppo_epochs or shared["num_ppo_epochs"]},
    )
    ppo_trainer.selective_log_softmax = _log_probs
    prompts = _prompts(work)
    reward_model, value_model = _classifier(work), _value_model(work)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=_from_folder(AutoModelForCausalLM, work["base"]),
        ref_model=None,  # the policy without its adapter
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=prompts,
        peft_config=_adapters(settings, TaskType.CAUSAL_LM),
    )
    trainer.remove_callback(PrinterCallback)
    # In order: the trainer's own loader shuffles, and both sides are to see the same prompts in the same update.
    in_order = DataLoader(prompts, batch_size=batch, collate_fn=trainer.data_collator, drop_last=True)
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    return trainer


SHARED = (
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "adam_epsilon",
    "temperature",
    "num_ppo_epochs",
    "num_mini_batches",
    "gamma",
    "lam",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "kl_coef",
    "kl_estimator",
    "whiten_rewards",
)
"""What both sides call by the same name."""


def _tokenizer(work: dict[str, Any]) -> PreTrainedTokenizerBase:
    """As in TRL's example: padding on the left, with a token that the model does not know and never writes."""
    tokenizer = AutoTokenizer.from_pretrained(work["base"], padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def _prompts(work: dict[str, Any]) -> Dataset:
    """Each as often as it is answered, update after update, and one batch more."""
    updates: Sequence[Sequence[list[int]]] = json.loads(Path(work["prompts"]).read_text(encoding="utf-8"))
    rows = [prompt for batch in [*updates, updates[0]] for prompt in batch for _ in range(int(work["samples"]))]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def _adapters(settings: dict[str, Any], task: TaskType) -> LoraConfig:
    """The same as our side's."""
    return LoraConfig(
        task_type=task,
        r=settings["lora_r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def _classifier(work: dict[str, Any]) -> Any:
    """Our reward model, its adapter merged in: TRL takes whole models."""
    model = _from_folder(AutoModelForSequenceClassification, work["classifier"], num_labels=1)
    return model.requires_grad_(False)


def _value_model(work: dict[str, Any]) -> Any:
    """Begins as the reward model. All of it is trained, as in TRL's example, or adapters on it and its head."""
    model = _classifier(work).requires_grad_(True)
    if work["peer_critic"] == "lora":
        model = get_peft_model(model, _adapters(work["settings"], TaskType.SEQ_CLS))
    return model


def _from_folder(kind: Any, folder: str, **changes: Any) -> Any:
    """In float32, without dropout: TRL turns off dropout modules, not the attention's, which is a number."""
    config = AutoConfig.from_pretrained(folder, **changes)
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    return kind.from_pretrained(folder, config=config, dtype=torch.float32)
