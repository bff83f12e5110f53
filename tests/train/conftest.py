"""A 2-layer model and a byte-level tokenizer, made on the spot: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerBase

from tests.train.made import byte_tokenizer, rows, save_model, write_rows


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """ChatML, pad token apart from EOS."""
    made = byte_tokenizer()
    made.pad_token = "<|endoftext|>"
    return made


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-style model folder."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        attention_dropout=0.3,
        initializer_range=0.3,
    )
    return save_model(config, byte_tokenizer(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2-style model folder: Conv1D layers, dropouts, no chat template, and no token to spare for padding."""
    config = GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0)
    tokenizer = byte_tokenizer(special=["<|end|>"], template=None)
    return save_model(config, tokenizer, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 ranked prompts."""
    return write_rows(tmp_path_factory.mktemp("data") / "ranked.jsonl", rows())


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small only lose by sharing."""
    torch.set_num_threads(1)
