"""The reward model: groups against one pair at a time, the head, the scored position, plain loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from data.errors import BadInput
from data.records import read_record
from tests.train.made import rows
from train.groups import Group, encode_records
from train.layouts import Layout, PaddedRows, TreeRows, collate, scores
from train.models import load_tokenizer, resolve
from train.rewards import Float32Head, load_reward_model, new_reward_model
from train.tree_attention import NAME as TREE

WIDE = 1_000_000


def made(folder: Path, dtype: torch.dtype = torch.float64, **options: bool):
    source = resolve(str(folder), workspace=folder)
    torch.manual_seed(1)
    model = new_reward_model(source, lora_r=4, lora_alpha=8, dtype=dtype, **options)
    for name, p in model.named_parameters():
        if p.requires_grad and "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)  # zero at first: no gradient would reach lora_A
    model.to(dtype)
    records = [read_record(row, where="here") for row in rows(9)]
    groups, _ = encode_records(records, load_tokenizer(source), max_length=200)
    return model, groups


def test_the_scored_position_is_the_last_by_length_even_where_text_holds_the_pad_token(tiny: Path) -> None:
    model, groups = made(tiny)
    model.eval()
    with torch.no_grad():
        row = list(groups[0].rows[0])
        odd = (*row[:-1], 0, 0)  # ends with what the padding is made of
        pair = Group("a", (tuple(odd), tuple(row) * 2), (1, 1))
        plain = scores(model, collate(PaddedRows(WIDE), [pair]))
        ids, end = torch.tensor([odd]), torch.tensor([len(odd) - 1])
        single = model(input_ids=ids, attention_mask=torch.ones_like(ids), ends=end)
    assert plain[0].item() == pytest.approx(single[0].item(), abs=1e-12)


def test_dropout_is_off_and_all_linear_layers_but_the_head_are_adapted(tiny_gpt2: Path) -> None:
    model, groups = made(tiny_gpt2, torch.float32)
    model.train()
    layout = PaddedRows(WIDE)
    first, second = (scores(model, collate(layout, groups)) for _ in range(2))
    assert torch.equal(first, second)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[-4] for n in trained if "lora_A" in n} == {"c_attn", "c_proj", "c_fc"}
    assert [n for n in trained if "lora_" not in n] == ["base_model.model.score.modules_to_save.default.weight"]


def test_the_head_is_drawn_with_the_stated_scale(tiny: Path) -> None:
    source = resolve(str(tiny), workspace=tiny)
    draws = []
    for seed in range(20):
        torch.manual_seed(seed)
        head = new_reward_model(source, lora_r=1, lora_alpha=1, dtype=torch.float32).base_model.model.score
        draws.append(head.modules_to_save["default"].weight.detach())
    assert torch.cat(draws).std().item() == pytest.approx((32 + 1) ** -0.5, rel=0.12)


def test_the_head_computes_in_float32_inside_autocast(tiny: Path) -> None:
    model, groups = made(tiny, torch.float32)
    head = model.base_model.model.score.modules_to_save["default"]
    assert isinstance(head, Float32Head)
    assert head.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.float32
        assert scores(model, collate(PaddedRows(WIDE), groups)).dtype == torch.float32


def test_a_bfloat16_base_keeps_its_head_and_adapters_in_float32(tiny: Path) -> None:
    source = resolve(str(tiny), workspace=tiny)
    model = new_reward_model(source, lora_r=2, lora_alpha=4, dtype=torch.bfloat16)
    kinds = {p.requires_grad: p.dtype for n, p in model.named_parameters() if "original_module" not in n}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_a_model_without_a_score_head_gives_no_rewards(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"this model has no score head\. Train one with"):
        load_reward_model(resolve(str(tiny), workspace=tiny), dtype=torch.float32)


def gradients(model: torch.nn.Module, groups: list[Group], layout: Layout) -> dict[str, torch.Tensor]:
    batch = collate(layout, groups)
    scores(model.train(), batch).square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", ["tiny", "tiny_gpt2"])
@pytest.mark.parametrize("layout", [PaddedRows(WIDE), PaddedRows(100), TreeRows(WIDE)], ids=str)
def test_gradient_checkpointing_changes_no_gradient(
    family: str, layout: Layout, request: pytest.FixtureRequest
) -> None:
    """In one forward, in several that are computed again themselves, and in tree rows."""
    folder = request.getfixturevalue(family)
    attention = TREE if isinstance(layout, TreeRows) else "sdpa"
    model, groups = made(folder)
    model.get_base_model().set_attn_implementation(attention)
    expected = gradients(model, groups, layout)
    model, groups = made(folder, gradient_checkpointing=True)
    model.get_base_model().set_attn_implementation(attention)
    runs = []
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    layer.register_forward_pre_hook(lambda *_: runs.append("layer"))
    norm = next(m for n, m in layer.named_modules() if "norm" in n or n.startswith("ln"))
    norm.register_forward_pre_hook(lambda *_: runs.append("within"))
    found = gradients(model, groups, layout)
    assert runs.count("within") > runs.count("layer")  # computed again
    assert found.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-12 * gradient.abs().max(), name


def test_gradient_checkpointing_where_a_model_has_none_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(BadInput, match=r"^--gradient_checkpointing: the model .* cannot do it\. Leave it out\."):
        made(tiny, gradient_checkpointing=True)
