"""`python -m train generate`: write responses to prompts, ready to be ranked."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from data.errors import BadInput
from data.formats.lines import read_lines, source_of
from data.importing import read_records
from data.json_lines import encode_json
from data.records import PromptRecord, Response, prompt_messages, write_record
from train.chat import encode_prompt
from train.configs import GenerateConfig
from train.files import atomic_text, check_out_file
from train.models import device, load_causal, load_tokenizer, resolve
from train.progress import clock

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One written response. `finished`: it ended with an EOS token within max_new_tokens."""

    text: str
    finished: bool
    tokens: int


def main(config: GenerateConfig) -> str:
    """Write `samples` responses to every prompt of a file, rows in the file's order; returns a summary."""
    check_out_file(config.out, flag="--out")
    prompts = list(read_prompts(config.prompts))
    source = resolve(config.model, workspace=config.workspace)
    tokenizer = load_tokenizer(source)
    model = load_causal(source, dtype=torch.bfloat16 if config.bf16 else torch.float32).to(device())
    encoded = [encode_prompt(tokenizer, p.prompt) for p in prompts]
    _check_room(prompts, encoded, model=model, room=config.max_new_tokens)
    set_seed(config.seed)
    began = time.monotonic()
    samples = sample_all(model, tokenizer, encoded, config=config)
    with atomic_text(config.out) as file:
        for prompt, own in zip(prompts, samples, strict=True):
            row = write_record(_with_responses(prompt, own, model=config.model))
            file.write(encode_json(row) + "\n")
    return _summary(config, samples, seconds=time.monotonic() - began)


def read_prompts(path: Path) -> Iterator[PromptRecord]:
    """The prompts of a file: one a line of a .txt, else whatever an import reads, responses not needed."""
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


def sample_all(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], *, config: GenerateConfig
) -> list[list[Sample]]:
    """`config.samples` responses to each prompt (token ids), prompts of similar length together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    wanted = [i for i in order for _ in range(config.samples)]
    settings = _settings(tokenizer, model, config=config)
    found: list[list[Sample]] = [[] for _ in prompts]
    bar = tqdm(total=len(wanted), unit="response", file=sys.stderr, disable=None)
    began = time.monotonic()
    for start in range(0, len(wanted), config.batch_size):
        numbers = wanted[start : start + config.batch_size]
        batch = _sample(model, tokenizer, [prompts[i] for i in numbers], settings=settings)
        for i, sample in zip(numbers, batch, strict=True):
            found[i].append(sample)
        bar.update(len(numbers))
        if bar.disable:
            done = start + len(numbers)
            left = (time.monotonic() - began) / done * (len(wanted) - done)
            log.info("%d/%d responses  %s left", done, len(wanted), clock(left))
    bar.close()
    return found


@torch.inference_mode()
def _sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], *, settings: GenerationConfig
) -> list[Sample]:
    """One response to each prompt. Padding is on the left and masked by length, whatever the pad token is."""
    width = max(map(len, prompts))
    at = next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=at)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=at)
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
    return [_cut_at_eos(row, tokenizer, stops=settings.eos_token_id) for row in written.tolist()]


def _cut_at_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase, *, stops: Sequence[int]) -> Sample:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    # Databases refuse NUL.
    text = str(tokenizer.decode(kept, skip_special_tokens=True)).strip().replace("\x00", "")
    return Sample(text, finished=end is not None, tokens=len(kept))


def _settings(tokenizer: PreTrainedTokenizerBase, model: Any, *, config: GenerateConfig) -> GenerationConfig:
    """Our settings alone: what a model folder suggests (top_k, penalties) would change the distribution unasked."""
    suggested = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(suggested if isinstance(suggested, list) else [suggested])} - {None}
    chance = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=config.max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.eos_token_id,  # what fills up a finished row; everything from the first EOS is cut off
        **(chance if config.temperature else {"do_sample": False}),
    )
    # The library fills what is unset from here.
    model.generation_config = settings
    return settings


def _check_room(prompts: Sequence[PromptRecord], encoded: Sequence[Sequence[int]], *, model: Any, room: int) -> None:
    """Refuse prompts that leave no room for a response. Raises BadInput."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=1):
        if positions and len(ids) + room > positions:
            raise BadInput(
                f"prompt {number} ('{prompt.prompt[-1].content[:40]}'): {len(ids)} tokens and {room} new ones are more "
                f"than the model's {positions}. Shorten the prompt or lower --max_new_tokens."
            )


def _with_responses(prompt: PromptRecord, samples: Sequence[Sample], *, model: str) -> PromptRecord:
    """A new row: other responses are other content, so the prompt's own id moves to the metadata."""
    origin = {"prompt_id": prompt.id} if prompt.id else {}
    record = PromptRecord(
        prompt=prompt.prompt,
        responses=tuple(Response(s.text, model=model) for s in samples),
        metadata={**prompt.metadata, **origin},
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
