"""Decoding on a CPU: the numbers of the plain model, and the model as it was afterwards, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.train.two_layers import disabled, made, merged, two
from train import products
from train.decoding import fast_decoding
from train.lora_linear import LoraLinear, add_on
from train.models import known_warnings
from train.sampling import sample_all

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def layers(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


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


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_in_float32_the_numbers_are_the_same_whichever_library_multiplies(
    rows: int, amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "is_amd", lambda: amd)
    plain, ours = made(torch.float32)
    x = torch.randn(rows, 2, 6)
    with fast_decoding(ours), torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)


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


def test_in_half_precision_nothing_is_summed() -> None:
    """The sum would be rounded: what writes would not be what is trained. The library keeps the adapters in float32."""
    plain, ours = made(torch.bfloat16)
    for model in (plain, ours):
        for name, p in model.named_parameters():
            p.data = p.data.float() if "lora_" in name else p.data
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    with fast_decoding(ours):
        assert not any(hasattr(m, "summed") for m in ours.modules())
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-2, atol=1e-2)


def test_after_an_error_while_writing_the_model_is_as_it_was() -> None:
    _, ours = made()
    before, kinds = {n: p.clone() for n, p in ours.state_dict().items()}, layers(ours)
    with pytest.raises(RuntimeError, match="shape"), fast_decoding(ours):
        ours(torch.randn(3, 7, dtype=torch.float64))
    assert_left_as(ours, kinds, before)


def test_responses_are_those_of_plain_layers(tiny: Path) -> None:
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    with known_warnings():
        plain = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny).double(), config).double()
    ours = copy.deepcopy(plain)
    add_on(ours)
    used: set[type] = set()
    for layer in ours.modules():
        layer.register_forward_hook(lambda module, args, output: used.add(type(module)))

    tokenizer, prompts = AutoTokenizer.from_pretrained(tiny), [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    how = SimpleNamespace(samples=2, temperature=1.0, top_p=0.9, max_new_tokens=12, batch_size=4, seed=3)
    written = sample_all(ours, tokenizer, prompts, config=how, quiet=True)
    assert written == sample_all(plain, tokenizer, prompts, config=how, quiet=True)
    assert len({s.ids for own in written for s in own}) == 6
    assert LoraLinear not in used and "_Summed" in {kind.__name__ for kind in used}
