"""Keys and values of what has been read and written. A prompt's are computed once for all responses to it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 128
"""The most tokens that a layer keeps room for."""


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The library's layer, with room for tokens to come: the library's copies all it holds for every token."""

    def __init__(self, room: int = ROOM, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.room = room
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
            self._buffers[name] = more.new_empty(*more.shape[:-2], end + self.room, more.shape[-1])
            if used:
                self._buffers[name][..., :used, :] = held
        self._buffers[name][..., used:end, :] = more
        self._shown[name] = self._buffers[name][..., :end, :]
        return self._shown[name]


def new_cache(model: Any, *, room: int = ROOM) -> DynamicCache | None:
    """An empty one for this model. None where it keeps something else than keys and values: the library knows what."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes_one = (
        base._supports_default_dynamic_cache() and "past_key_values" in inspect.signature(base.forward).parameters
    )
    if not takes_one:
        return None
    cache = DynamicCache(config=base.config.get_text_config(decoder=True))
    if {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
        return None
    cache.layers = [RoomyLayer(min(room, ROOM)) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def prompts_read_once(
    model: Any, *, ids: Tensor, mask: Tensor, rows: Tensor, settings: GenerationConfig
) -> DynamicCache | None:
    """A cache with each prompt but for its last token, computed once and handed to all `rows` that go on from it. None
    where the model keeps something else than keys and values.

    Shapes: `ids` and `mask` (prompts, width), each prompt 2 tokens or more; `rows` (responses,), the prompt of each.
    """
    cache = new_cache(model, room=int(settings.max_new_tokens))
    if cache is None:
        return None
    once = copy.deepcopy(settings)
    once.max_new_tokens = 1
    # A last token that the cache lacks: what goes on from it takes the first response token's logits from there.
    model.generate(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, generation_config=once)
    cache.batch_select_indices(rows)
    return cache
