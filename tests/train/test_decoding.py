"""Decoding on a CPU: the numbers of the plain model, and the model as it was afterwards, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.train.two_layers import disabled, made, merged, two
from train import sampling
from train.decoding import FEW, fast_decoding, few_rows
from train.lora_linear import LoraLinear

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def layers(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 6), (3, 1, 6), (2, 4, 6), (FEW, 1, 6), (FEW + 1, 6), (0, 6)])
@pytest.mark.parametrize("bias", [None, torch.randn(5, dtype=torch.float64)], ids=["plain", "bias"])
def test_a_product_of_few_rows_is_the_product(shape: tuple[int, ...], bias: Tensor | None) -> None:
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    y = few_rows(x, weight, bias)
    torch.testing.assert_close(y, nn.functional.linear(x, weight, bias), **EXACT)
    assert y.is_contiguous()


@pytest.mark.parametrize("adapter", ["default", "other"])
def test_with_an_adapter_the_numbers_are_the_same_and_afterwards_so_is_the_model(adapter: str) -> None:
    _, ours = made()
    ours.set_adapter(adapter)
    x = torch.randn(3, 6, dtype=torch.float64)
    expected, before, kinds = ours(x), {n: p.clone() for n, p in ours.state_dict().items()}, layers(ours)
    with fast_decoding(ours), torch.no_grad():
        assert LoraLinear not in layers(ours)
        torch.testing.assert_close(ours(x), expected, **EXACT)
        assert ours.state_dict().keys() == before.keys(), "a checkpoint has what it had"
    assert_left_as(ours, kinds, before)
    assert torch.equal(ours(x), expected)


def assert_left_as(model: PeftModel, kinds: list[type], before: dict[str, Tensor]) -> None:
    assert layers(model) == kinds
    assert not any(hasattr(m, "summed") for m in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("change", [disabled, merged, two])
def test_where_no_single_adapter_is_at_work_nothing_is_summed(change: Callable[[PeftModel], None]) -> None:
    plain, ours = made()
    for model in (plain, ours):
        change(model)
    x = torch.randn(3, 6, dtype=torch.float64)
    with fast_decoding(ours):
        assert not any(hasattr(m, "summed") for m in ours.modules())
        torch.testing.assert_close(ours(x), plain(x), **EXACT)


def test_in_half_precision_nothing_changes() -> None:
    """A sum would be rounded: what writes would not be what is trained."""
    _, ours = made(torch.bfloat16)
    kinds = layers(ours)
    with fast_decoding(ours):
        assert layers(ours) == kinds


def test_after_an_error_while_writing_the_model_is_as_it_was() -> None:
    _, ours = made()
    before, kinds = {n: p.clone() for n, p in ours.state_dict().items()}, layers(ours)
    with pytest.raises(RuntimeError, match="shape"), fast_decoding(ours):
        ours(torch.randn(3, 7, dtype=torch.float64))
    assert_left_as(ours, kinds, before)


def test_responses_are_the_plain_models(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny).double()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    config = SimpleNamespace(samples=2, temperature=1.0, top_p=0.9, max_new_tokens=12, batch_size=4, seed=3)
    fast = sampling.sample_all(model, tokenizer, prompts, config=config, quiet=True)
    with patch.object(sampling, "fast_decoding", lambda model: torch.no_grad()):
        assert sampling.sample_all(model, tokenizer, prompts, config=config, quiet=True) == fast
    assert len({s.ids for own in fast for s in own}) == 6
