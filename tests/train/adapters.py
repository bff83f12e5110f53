"""Adapters as a finished training leaves them, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from train.models import known_warnings, load_tokenizer, resolve
from train.rewards import new_reward_model
from train.run import Run


def stir(model: torch.nn.Module) -> None:
    """Give the second half of each adapter, zero at first, something to do."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)


def causal_adapter(base: Path, folder: Path, *, seed: int = 1, with_tokenizer: bool = True) -> Path:
    """A language model's adapter, as a supervised fine-tuning writes it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    turned = any(isinstance(m, Conv1D) for m in model.modules())
    torch.manual_seed(seed)
    with known_warnings():
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", fan_in_fan_out=turned)
        )
    stir(model)
    model.save_pretrained(folder)
    if with_tokenizer:
        load_tokenizer(resolve(str(base), workspace=folder)).save_pretrained(folder)
    return folder


def reward_run(base: Path, path: Path, *, load_in_4bit: bool = False) -> Path:
    """A run of `rm` as it stands when it is done, with an adapter that was not trained."""
    source = resolve(str(base), workspace=path)
    config = {"model": str(base), "max_length": 64, "load_in_4bit": load_in_4bit, "manifest_sha256": "abc123"}
    Run.create(path, stage="rm", config=config).finish("done")
    torch.manual_seed(0)
    model = new_reward_model(source, lora_r=4, lora_alpha=8, dtype=torch.float32, load_in_4bit=load_in_4bit)
    stir(model)
    model.save_pretrained(path / "adapter")
    load_tokenizer(source).save_pretrained(path / "adapter")
    return path


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
