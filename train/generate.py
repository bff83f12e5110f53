"""`python -m train generate`: write responses to prompts, ready to be ranked."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.errors import BadInput
from data.exporting import read_dataset
from data.formats.lines import read_lines, source_of
from data.importing import read_records
from data.json_lines import encode_json
from data.records import MAX_NAME_CHARS, PromptRecord, Response, prompt_messages, write_record
from train.chat import encode_prompt
from train.command_configs import GenerateConfig
from train.files import atomic_text, check_out_file
from train.models import ModelSource, device, load_causal, load_config, load_tokenizer, resolve
from train.sampling import Sample, Sampling, sample_all

log = logging.getLogger(__name__)


def main(config: GenerateConfig) -> str:
    """Write `samples` responses to every prompt of a file, rows in the file's order; returns a summary."""
    check_out_file(config.out, flag="--out")
    prompts = list(read_prompts(config.prompts))
    source = resolve(config.model, workspace=config.workspace)
    tokenizer = load_tokenizer(source)
    encoded = [encode_prompt(tokenizer, p.prompt) for p in prompts]
    _check_room(prompts, encoded, source=source, room=config.max_new_tokens)
    model = load_causal(source, dtype=torch.bfloat16 if config.bf16 else torch.float32).to(device())
    began = time.monotonic()
    samples = sample_all(model, tokenizer, encoded, config=config)
    with atomic_text(config.out) as file:
        for prompt, own in zip(prompts, samples, strict=True):
            row = written_row(prompt, [(config.model, own)], config=config)
            file.write(encode_json(write_record(row)) + "\n")
    return _summary(config, samples, seconds=time.monotonic() - began)


def read_prompts(path: Path) -> Iterator[PromptRecord]:
    """The prompts of a file: one a line of a .txt, else whatever an import reads, responses not needed; or those of a
    dataset folder."""
    if path.is_dir():
        yield from read_dataset(path).records
        return
    if path.suffix.lower() != ".txt":
        yield from read_records(path, min_responses=0)
        return
    source = source_of(path)
    lines = list(read_lines(source))
    if not lines:
        raise BadInput(f"{path}: no prompt; write one a line.")
    for line in lines:
        messages = prompt_messages(line.text.strip(), where=source.at(line.number))
        yield PromptRecord(prompt=messages, responses=())


def longest_prompt(source: ModelSource, *, room: int) -> int | None:
    """The most tokens of a prompt that leave `room` new ones; None where the model sets no limit."""
    positions = getattr(load_config(source).get_text_config(), "max_position_embeddings", None)
    return positions - room if positions else None


def _check_room(
    prompts: Sequence[PromptRecord], encoded: Sequence[Sequence[int]], *, source: ModelSource, room: int
) -> None:
    """Refuse prompts that leave no room for a response. Raises BadInput."""
    longest = longest_prompt(source, room=room)
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=1):
        if longest is not None and len(ids) > longest:
            raise BadInput(
                f"prompt {number} ('{prompt.prompt[-1].content[:40]}'): {len(ids)} tokens and {room} new ones are more "
                f"than the model's {longest + room}. Shorten the prompt or lower --max_new_tokens."
            )


def written_row(
    prompt: PromptRecord,
    written: Sequence[tuple[str, Sequence[Sample]]],
    *,
    config: Sampling,
    more: Mapping[str, Any] | None = None,
) -> PromptRecord:
    """A new row: other responses are other content, so the prompt's own id moves to the metadata.

    `written`: who wrote, and what. `more` goes into the metadata beside how they were written.
    """
    flat = [s for _, own in written for s in own]
    generation = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
        "tokens": [s.tokens for s in flat],
        "finished": [s.finished for s in flat],
    }
    origin = {"prompt_id": prompt.id} if prompt.id else {}
    record = PromptRecord(
        prompt=prompt.prompt,
        # The end of a long path says more than its start.
        responses=tuple(Response(s.text, model=name[-MAX_NAME_CHARS:]) for name, own in written for s in own),
        metadata={**prompt.metadata, **origin, "generation": generation, **(more or {})},
    )
    return replace(record, id=record.content_hash[:16])


def _summary(config: GenerateConfig, samples: Sequence[Sequence[Sample]], *, seconds: float) -> str:
    flat = [s for own in samples for s in own]
    tokens = sum(s.tokens for s in flat)
    counts = {
        "prompts": len(samples),
        "responses": len(flat),
        "unfinished": sum(not s.finished for s in flat),
        "empty": sum(not s.text for s in flat),
        "duplicates": sum(len(own) - len({s.text for s in own}) for own in samples),
        "tokens": tokens,
    }
    log.info("%s, %.1f tokens/s", ", ".join(f"{name} {n}" for name, n in counts.items()), tokens / seconds)
    result = {**counts, "seconds": round(seconds, 2), "out": str(config.out)}
    return json.dumps(result) if config.json else str(config.out)
