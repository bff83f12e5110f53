"""Responses drawn from a language model, in batches, each with a chance of its own.

A response depends on the model, the prompt, the settings, the seed and its own number, and on nothing else: not on the
batch, nor on the prompts beside it, nor on what the process drew before. (Rounding may differ between batches; it shows
where two tokens are as good as equal.)
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from train.decoding import fast_decoding
from train.kv_cache import new_cache, prompts_read_once
from train.progress import clock

log = logging.getLogger(__name__)


class Sampling(Protocol):
    """What `sample_all` asks of a config."""

    @property
    def samples(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Sample(NamedTuple):
    """One written response. `finished`: it ended with an EOS token within max_new_tokens. `tokens`: without EOS.

    `ids`: the tokens, EOS included.
    """

    text: str
    finished: bool
    tokens: int
    ids: tuple[int, ...] = ()


class Draw(NamedTuple):
    """One response to write: to the prompt at `place`, with the chance of `seed`."""

    place: int
    seed: int


def sample_all(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    config: Sampling,
    first: int = 0,
    quiet: bool = False,
) -> list[list[Sample]]:
    """`config.samples` responses to each prompt (token ids), prompts of similar length together.

    `first`: the number of a prompt's first response; two calls whose numbers do not meet draw independently. The
    model's own generation settings and torch's random state are left as they were. `quiet`: no bar, no lines.
    """
    draws = draws_of(prompts, config=config, first=first)
    stops = stop_tokens(tokenizer, model)
    found: list[list[Sample]] = [[] for _ in prompts]
    bar = tqdm(total=len(draws), unit="response", file=sys.stderr, disable=quiet or None)
    began = time.monotonic()
    with (
        fast_decoding(model),
        _settings(model, stops=stops, max_new_tokens=config.max_new_tokens) as settings,
        bar,
    ):
        for start in range(0, len(draws), config.batch_size):
            batch = draws[start : start + config.batch_size]
            chosen = _chance([d.seed for d in batch], model=model, config=config)
            written = _write(model, [prompts[d.place] for d in batch], settings=settings, chosen=chosen)
            for draw, ids in zip(batch, written, strict=True):
                found[draw.place].append(cut_at_eos(ids, tokenizer, stops=stops))
            bar.update(len(batch))
            if bar.disable and not quiet:
                done = start + len(batch)
                left = (time.monotonic() - began) / done * (len(draws) - done)
                log.info("%d/%d responses  %s left", done, len(draws), clock(left))
    return found


def draws_of(prompts: Sequence[Sequence[int]], *, config: Sampling, first: int) -> list[Draw]:
    """All responses to write, those to the longest prompts first: what does not fit in memory fails at once."""
    earlier: Counter[tuple[int, ...]] = Counter()  # a prompt that comes twice gets other responses the second time
    draws = []
    for place, prompt in enumerate(prompts):
        key = tuple(prompt)
        for number in range(first + earlier[key], first + earlier[key] + config.samples):
            text = f"{config.seed} {number} {' '.join(map(str, key))}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1  # a signed 64-bit number
            draws.append(Draw(place, seed))
        earlier[key] += config.samples
    return sorted(draws, key=lambda d: len(prompts[d.place]), reverse=True)


@torch.inference_mode()
def _write(
    model: Any, prompts: Sequence[Sequence[int]], *, settings: GenerationConfig, chosen: LogitsProcessorList
) -> list[list[int]]:
    """The new tokens of one batch. Padding is on the left and masked by length, whatever the pad token is."""
    places = {prompt: n for n, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    width, at = max(map(len, places)), next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in places], device=at)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in places], device=at)
    rows = torch.tensor([places[tuple(p)] for p in prompts], device=at)
    if len(rows) > len(ids) and min(map(len, places)) > 1:
        cache = prompts_read_once(model, ids=ids, mask=mask, rows=rows, settings=settings)
    else:
        cache = new_cache(model, room=int(settings.max_new_tokens))
    written = model.generate(
        input_ids=ids[rows],
        attention_mask=mask[rows],
        past_key_values=cache,
        generation_config=settings,
        logits_processor=chosen,
    )
    return written[:, width:].tolist()  # type: ignore[no-any-return]


def cut_at_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase, *, stops: Sequence[int]) -> Sample:
    """What was written up to the first EOS token."""
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    # Databases refuse NUL.
    text = str(tokenizer.decode(kept, skip_special_tokens=True)).strip().replace("\x00", "")
    return Sample(text, finished=end is not None, tokens=len(kept), ids=tuple(ids if end is None else ids[: end + 1]))


class _OwnChance(LogitsProcessor):
    """Adds Gumbel noise to each row's logits, from the row's own generator: the largest sum is a sample of the softmax.

    Source: Gumbel 1954; Maddison et al. 2014. The library draws a batch from one generator: there, a response hangs on
    how many others are written beside it.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waits = torch.empty_like(scores)
        for row, generator in zip(waits, self.generators, strict=True):
            row.exponential_(generator=generator)
        # -log of an exponential is Gumbel. At 0 it would be infinite, and lift what top_p has ruled out (-inf) to nan.
        return scores - waits.clamp_min_(torch.finfo(scores.dtype).tiny).log_()


def _chance(seeds: Sequence[int], *, model: Any, config: Sampling) -> LogitsProcessorList:
    """What turns the logits into ones whose largest is the next token; nothing at temperature 0."""
    if not config.temperature:
        return LogitsProcessorList()
    steps: list[Any] = [TemperatureLogitsWarper(config.temperature)]
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    return LogitsProcessorList([*steps, _OwnChance(seeds, next(model.parameters()).device)])


def stop_tokens(tokenizer: PreTrainedTokenizerBase, model: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's EOS, and those that the model folder names."""
    suggested = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(suggested if isinstance(suggested, list) else [suggested])} - {None}
    return sorted(stops)


@contextmanager
def _settings(model: Any, *, stops: Sequence[int], max_new_tokens: int) -> Iterator[GenerationConfig]:
    """Our settings alone: what a model folder suggests (top_k, penalties) would change the distribution unasked."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops),
        pad_token_id=stops[0],  # what fills up a finished row; everything from the first EOS is cut off
        do_sample=False,
    )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = model.generation_config, base.generation_config
    # The library fills what is unset from here.
    model.generation_config = settings
    try:
        yield settings
    finally:
        model.generation_config, base.generation_config = before
