"""The cache: what the library's holds, without laying it down anew for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tests.train.families import GROUPED
from train.kv_cache import ROOM, RoomyLayer, new_cache


def states(tokens: int, *, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Keys of 4 numbers and values of 6, 2 heads."""
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 6)


def chosen(layer: DynamicLayer) -> None:
    layer.batch_select_indices(torch.tensor([2, 0, 0]))


def reordered(layer: DynamicLayer) -> None:
    layer.reorder_cache(torch.tensor([1, 1, 2]))


def cropped(layer: DynamicLayer) -> None:
    layer.crop(-2)


def reset(layer: DynamicLayer) -> None:
    layer.reset()


@pytest.mark.parametrize("change", [chosen, reordered, cropped, reset])
def test_it_holds_what_the_librarys_holds(change: Callable[[DynamicLayer], None]) -> None:
    torch.manual_seed(0)
    plain, ours = DynamicLayer(), RoomyLayer()
    for n, tokens in enumerate((5, 1, 1, ROOM + 3, 1, 2)):
        given = states(tokens)
        shown = ours.update(*(s.clone() for s in given))
        for mine, theirs in zip(shown, plain.update(*given), strict=True):
            assert torch.equal(mine, theirs)
        assert ours.get_seq_length() == plain.get_seq_length()
        if n in (1, 3):
            for layer in (plain, ours):
                change(layer)


def test_what_was_shown_is_not_written_over() -> None:
    layer = RoomyLayer()
    shown, _ = layer.update(*states(5))
    before = shown.clone()
    layer.crop(-2)
    layer.update(*states(2))
    assert torch.equal(shown, before)


def test_a_token_is_laid_down_once() -> None:
    layer = RoomyLayer()
    layer.update(*states(7))
    first = layer.keys.data_ptr()
    for _ in range(ROOM):
        layer.update(*states(1))
    assert layer.keys.data_ptr() == first
    layer.update(*states(1))
    assert layer.keys.data_ptr() != first and layer.get_seq_length() == 7 + ROOM + 1


def test_room_is_kept_for_no_more_than_is_written() -> None:
    layer = RoomyLayer(3)
    layer.update(*states(7))
    assert layer.keys.untyped_storage().nbytes() == 3 * 2 * (7 + 3) * 4 * 4


def test_windows_are_left_to_the_library() -> None:
    def kinds(model: Any) -> set[type]:
        cache = new_cache(model)
        assert cache is not None
        return {type(layer) for layer in cache.layers}

    assert kinds(LlamaForCausalLM(LlamaConfig(**GROUPED))) == {RoomyLayer}
    assert kinds(MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=8))) == {DynamicSlidingWindowLayer}
