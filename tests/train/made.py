"""What the tests train on: a byte-level tokenizer, model folders and ranked rows, all made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(*, special: Sequence[str] = SPECIAL, template: str | None = CHATML) -> PreTrainedTokenizerBase:
    """One token a byte, after the special ones; pad == eos, the trap that real models set."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=special[-1], pad_token=special[-1], extra_special_tokens=list(special)
    )
    tokenizer.chat_template = template
    return tokenizer


def llama_config(**changes: Any) -> LlamaConfig:
    """Two layers; the vocabulary of `byte_tokenizer`."""
    sizes: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**sizes, **changes})


def save_model(config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Prompts with 2 to 4 responses; the more exclamation marks, the better. One tie, one unranked, two annotators."""
    made = []
    for i in range(count):
        k = 2 + i % 3
        marks = [(i * 7 + j * 5) % 11 for j in range(k)]
        order = sorted(range(k), key=lambda j: -marks[j])
        made.append(
            {
                "id": f"p{i}",
                "prompt": f"Say number {i}.",
                "responses": [f"It is {i}" + "!" * m for m in marks],
                "rankings": [{"annotator": "ann", "ranking": ">".join(f"A{j + 1}" for j in order)}],
            }
        )
    special = {
        1: [{"annotator": "ann", "ranking": "A1=A2>A3"}, {"annotator": "bob", "ranking": "A3>A1"}],
        4: [],
        6: [{"annotator": "ann", "ranking": "A1=A2"}],
    }
    return [{**row, "rankings": special.get(i, row["rankings"])} for i, row in enumerate(made)]


def write_rows(path: Path, made: list[dict[str, Any]]) -> Path:
    """Native rows in a file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return path
