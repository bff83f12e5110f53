"""What a model's own files may not ask for, and the tokenizer that is another model's: refused before weights are read.

A model folder is other people's work. Nothing in it may name code to be run, by whichever key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.errors import BadInput, NotFound
from data.records import Message
from train.chat import encode_response

_ATTENTION = re.compile("_?attn_implementation.*")
_ATTENTIONS = {"", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"}
"""Those that the library holds itself. Any other name is one of code on the model hub, which it would fetch and run."""
_INDEX = "*.safetensors.index.json"


def check_folder(path: Path) -> None:
    """Whether a model can be loaded from here: config and safetensors there, no code named. Raises UserError."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            f"--model {path}: no config.json; this is no model folder. Give the folder that has it."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BadInput(f"--model {path}: config.json is no valid JSON. Download the model again.") from None
    refuse_own_code(config, str(path))
    if not list(path.glob("*.safetensors")):
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern)]
        found = f"only {pickles[0]}, a format that can run code when it is read" if pickles else "no weights"
        raise BadInput(f"--model {path}: found {found}; weights must be safetensors. Convert them first.")
    for index in sorted(path.glob(_INDEX)):
        _check_index(index)


def refuse_own_code(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json that names code of its makers. Raises BadInput."""
    if "auto_map" in config:
        raise BadInput(
            f"--model {name}: config.json asks to run code of its own (auto_map), which is never done. "
            "Use a model that the transformers library knows."
        )
    for key, value in _attentions(config):
        if value.removeprefix("paged|") not in _ATTENTIONS:
            raise BadInput(
                f"--model {name}: config.json asks for the attention '{value[:80]}' ({key}), code that would be "
                "fetched from elsewhere, which is never done. Delete that line from config.json."
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedded: int | None, *, name: str) -> None:
    """Refuse a tokenizer that writes ids which the model has no place for: it is another model's. Raises BadInput.

    `embedded`: the model's embeddings, None where unknown. The pad token may lie beyond them: it is masked and never
    looked up. So may special tokens that no conversation holds, as those for images are in a model of text.
    """
    if embedded is None:
        return
    pad = tokenizer.pad_token_id
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= embedded and i != pad}
    if not beyond:
        return
    spare = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - _used(tokenizer)
    wrong = sorted(beyond.keys() - spare)
    if wrong:
        raise BadInput(
            f"--model {name}: its tokenizer has ids up to {max(beyond)} ('{beyond[wrong[0]][:40]}' is {wrong[0]}) and "
            f"the model only {embedded} embeddings (vocab_size): the tokenizer is another model's. Put the model's own "
            "beside it."
        )


def _attentions(config: Mapping[str, Any], *, inside: bool = False) -> Iterator[tuple[str, str]]:
    """Every name of an attention, at any depth: by part of the model, and in the configs of the parts."""
    for key, value in config.items():
        named = inside or bool(_ATTENTION.fullmatch(key))
        if isinstance(value, Mapping):
            yield from _attentions(value, inside=named)
        elif named and isinstance(value, str):
            yield key, value


def _check_index(index: Path) -> None:
    """The list of a large model's files. Raises BadInput where one could run code when it is read."""
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        wrong = sorted(name for name in files if not name.endswith(".safetensors"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"--model {index.parent}: {index.name} lists no weights. Download the model again.") from None
    if wrong:
        raise BadInput(
            f"--model {index.parent}: {index.name} names {wrong[0]}, and weights must be safetensors. Convert them "
            "first."
        )
    lost = sorted(name for name in files if not (index.parent / name).is_file())
    if lost:
        raise BadInput(
            f"--model {index.parent}: {len(lost)} of the {len(files)} files that {index.name} names are missing, "
            f"{lost[0]} among them. Download the model again."
        )


def _used(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that any conversation holds."""
    ends = {i for i in (tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None}
    try:
        return ends | set(encode_response(tokenizer, [Message("user", "Yes?")], "No."))
    except BadInput:  # a template that wants more than that tells about it when the data are read
        return ends
