"""What PPO reads before it makes its run folder: prompts, the base, and what scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from data.dataset_folder import file_sha256
from data.errors import BadInput
from data.exporting import read_dataset
from data.records import PromptRecord
from data.splits import EVAL, split_of
from train.chat import encode_prompt
from train.generate import read_prompts
from train.models import (
    ModelSource,
    device,
    load_config,
    load_tokenizer,
    resolve,
    tokenizer_sha256,
    trainable_base,
    weights_sha256,
)
from train.ppo_config import PpoConfig
from train.processes import world_size
from train.reward_sources import RewardPlan, plan_reward
from train.rewards import row_limit
from train.roles import Roles
from train.rollouts import Prompt
from train.sampling import stop_tokens


@dataclass(frozen=True)
class Inputs:
    """All that training needs, checked. `config`: the settings with what the prompts made of them."""

    config: PpoConfig
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
    counts: Mapping[str, int]
    """Prompts to learn from and held out, and those left out: too long, repeated."""
    reward: RewardPlan
    gold: RewardPlan | None
    hashes: Mapping[str, str]
    max_length: int


def read_inputs(config: PpoConfig) -> Inputs:
    """Prompts first (they are read in a moment), then the models. Raises UserError."""
    records, manifest_sha256 = _records(config)
    source = trainable_base(resolve(config.model, workspace=config.workspace), config.workspace)
    tokenizer = load_tokenizer(source)
    max_length = row_limit(load_config(source), asked=config.max_length)
    once = list({r.prompt_hash: r for r in reversed(records)}.values())[::-1]
    encoded = [Prompt(r, tuple(encode_prompt(tokenizer, r.prompt))) for r in once]
    fitting = [p for p in encoded if len(p.ids) + config.max_new_tokens <= max_length]
    train = [p for p in fitting if p.record.split != EVAL]
    held_out = [p for p in fitting if p.record.split == EVAL]
    counts = {
        "train": len(train),
        "eval": len(held_out),
        "too_long": len(once) - len(fitting),
        "repeated": len(records) - len(once),
    }
    _check_prompts(config, counts, longest=max((len(p.ids) for p in encoded), default=0), max_length=max_length)
    config = sized(config, train, on_cpu=device().type == "cpu")

    def plan(name: str, *, flag: str, may_share: bool) -> RewardPlan:
        return plan_reward(
            name,
            flag=flag,
            config=config,
            source=source,
            tokenizer=tokenizer,
            trial=train[0].record,
            may_share=may_share,
        )

    reward = plan(config.reward, flag="--reward", may_share=True)
    gold = plan(config.gold, flag="--gold", may_share=False) if config.gold else None
    return Inputs(
        config=config,
        source=source,
        tokenizer=tokenizer,
        train=train,
        held_out=_evenly(held_out, config.eval_prompts),
        counts=counts,
        reward=reward,
        gold=gold,
        hashes={
            "manifest_sha256": manifest_sha256,
            "model_sha256": weights_sha256(source),
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
            "reward_sha256": reward.sha256,
            "gold_sha256": gold.sha256 if gold else "",
        },
        max_length=max_length,
    )


def sized(config: PpoConfig, prompts: Sequence[Prompt], *, on_cpu: bool) -> PpoConfig:
    """The settings with the number of tokens that --tokens_per_forward 0 comes to with these prompts."""
    if config.tokens_per_forward:
        return config
    longest = max(len(p.ids) for p in prompts) + config.samples * config.max_new_tokens
    # SmolLM2-135M on a CPU: 512 at a time are about as fast as 1024 with a fifth less memory, 256 a tenth slower.
    fitting = min(max(longest, 512), 1024) if on_cpu else 1024
    return replace(config, tokens_per_forward=fitting)


def _records(config: PpoConfig) -> tuple[list[PromptRecord], str]:
    """Every prompt with an id and its split, and the sha256 of where they come from."""
    if config.data.is_dir():
        dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
        return list(dataset.records), dataset.manifest_sha256
    records = [replace(r, split=split_of(r, config.eval_fraction)) for r in read_prompts(config.data)]
    return [r if r.id else replace(r, id=r.prompt_hash[:16]) for r in records], file_sha256(config.data)


def _check_prompts(config: PpoConfig, counts: Mapping[str, int], *, longest: int, max_length: int) -> None:
    """Raises BadInput where a step cannot be filled."""
    together = config.per_device_train_batch_size * world_size()
    if counts["train"] >= together:
        return
    if counts["too_long"]:
        raise BadInput(
            f"{config.data}: {counts['too_long']} prompts leave no room for --max_new_tokens {config.max_new_tokens} "
            f"within {max_length} tokens (the longest has {longest}) and {counts['train']} are left to learn from; a "
            f"step has {together}. Lower --max_new_tokens or --per_device_train_batch_size, or shorten the prompts."
        )
    raise BadInput(
        f"{config.data}: {counts['train']} prompts to learn from, and a step has {together} different ones. Lower "
        "--per_device_train_batch_size or add prompts."
    )


def _evenly(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """So many of them, from all parts of the list."""
    kept = min(count, len(prompts))
    return [prompts[i * len(prompts) // kept] for i in range(kept)]


@torch.no_grad()
def check_tokens(roles: Roles, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, name: str) -> None:
    """Refuse a model whose responses could not end, or whose padding would be an end. Raises BadInput."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise BadInput(f"--model {name}: its pad token is its EOS token. Give it a pad token of its own.")
    vocabulary = int(roles.base.get_output_embeddings().weight.shape[0])
    stops = [token for token in stop_tokens(tokenizer, roles.model) if token < vocabulary]
    roles.model.eval()
    logits = roles.base(input_ids=torch.tensor([prompt.ids], device=roles.device), use_cache=False).logits[0, -1]
    if not any(torch.isfinite(logits[token]) for token in stops):
        raise BadInput(
            f"--model {name}: it can never write one of its stop tokens ({tokenizer.eos_token}), so that no response "
            "would end. Set eos_token in its tokenizer_config.json to one of its own."
        )
