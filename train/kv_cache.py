"""Keys and values of what has been read and written: each prompt's computed once, each token's laid down once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 128
"""Tokens that a layer keeps room for."""


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The library's layer of a cache, with room for tokens to come: there, every token lays all before it down anew."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}
        self._shown: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (rows, heads, tokens, d); returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = (self._appended(name, more) for name, more in (("keys", key_states), ("values", value_states)))
        self.keys, self.values = keys, values
        return keys, values

    def _appended(self, name: str, more: Tensor) -> Tensor:
        held: Tensor = getattr(self, name)
        used = held.shape[-2] if held.numel() else 0
        end = used + more.shape[-2]
        # Whatever else changes the layer (rows chosen, tokens cut off) puts another tensor in the place of ours.
        if held is not self._shown.get(name) or end > self._buffers[name].shape[-2]:
            self._buffers[name] = more.new_empty(*more.shape[:-2], end + ROOM, more.shape[-1])
            if used:
                self._buffers[name][..., :used, :] = held
        self._buffers[name][..., used:end, :] = more
        self._shown[name] = self._buffers[name][..., :end, :]
        return self._shown[name]


def new_cache(model: Any) -> DynamicCache | None:
    """An empty one for this model. None where it keeps something else than keys and values: the library knows what."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
        return None
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@torch.inference_mode()
def read_once(
    model: Any, cache: DynamicCache, ids: Tensor, mask: Tensor, *, rows: Tensor, settings: GenerationConfig
) -> None:
    """Fill the cache with each prompt but for its last token, computed once and handed to all `rows` that go on from
    it.

    Shapes: `ids` and `mask` (prompts, width), width 2 or more; `rows` (responses,), the prompt of each.
    """
    once = copy.deepcopy(settings)
    once.max_new_tokens = 1  # the library reads no prompt without a token after it; that one is left
    model.generate(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, generation_config=once)
    cache.batch_select_indices(rows)
