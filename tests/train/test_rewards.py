"""The reward model: groups against one pair at a time, the head, the scored position, plain loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from data.errors import BadInput
from data.records import read_record
from tests.train.made import rows
from train.groups import Group, comparison_tensors, encode_records
from train.losses import pairwise_loss
from train.models import load_tokenizer, resolve
from train.rewards import Float32Head, PaddedRows, load_reward_model, new_reward_model, score_groups

WIDE = 1_000_000


def made(folder: Path, dtype: torch.dtype = torch.float64):
    source = resolve(str(folder), workspace=folder)
    torch.manual_seed(1)
    model = new_reward_model(source, lora_r=4, lora_alpha=8, dtype=dtype)
    for name, p in model.named_parameters():
        if p.requires_grad and "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)  # zero at first: no gradient would reach lora_A
    model.to(dtype)
    if dtype == torch.float64:
        exact_norms(model)
    records = [read_record(row, where="here") for row in rows(9)]
    groups, _ = encode_records(records, load_tokenizer(source), max_length=200)
    return model, groups


def exact_norms(model) -> None:
    """Llama's norm rounds to float32 inside, which alone would cost 1e-8: the same norm without rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                exact = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                exact.weight = child.weight
                setattr(module, name, exact)


def batch_loss(model, groups: list[Group], layout: PaddedRows) -> torch.Tensor:
    batch = {**layout.collate(groups), **comparison_tensors(groups, dtype=torch.float64)}
    scores = layout.scores(model, batch)
    chosen, rejected = scores[batch["chosen"]], scores[batch["rejected"]]
    return pairwise_loss(chosen, rejected, preference=batch["preference"], weight=batch["weight"])


def alone_score(model, row: tuple[int, ...]) -> torch.Tensor:
    """One response in a batch of its own, without padding."""
    length = len(row)
    return model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, length), lengths=torch.tensor([length]))


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["tiny", "tiny_gpt2"])
@pytest.mark.parametrize("tokens_per_forward", [WIDE, 100])
def test_groups_equal_one_pair_at_a_time_in_scores_and_gradients(family, tokens_per_forward, request) -> None:
    """Each comparison alone, two unpadded rows a forward, summed by weight: float64, all adapters and the head."""
    model, groups = made(request.getfixturevalue(family))
    model.train()
    loss = batch_loss(model, groups, PaddedRows(tokens_per_forward))
    loss.backward()
    grouped = gradients(model)
    model.zero_grad()

    total = sum(c.weight for g in groups for c in g.comparisons)
    alone = 0.0
    for g in groups:
        for c in g.comparisons:
            pair = [alone_score(model, g.rows[n - 1]) for n in (c.chosen, c.rejected)]
            one = pairwise_loss(*pair, preference=torch.tensor([c.preference]), weight=torch.tensor([1.0]))
            one = one * c.weight / total
            one.backward()
            alone += one.item()

    assert loss.item() == pytest.approx(alone, abs=1e-9)
    expanded = gradients(model)
    assert grouped.keys() == expanded.keys()
    assert sum("lora_" in name for name in grouped) >= 2 * 2 * 4
    assert any("score" in name for name in grouped)
    for name, gradient in grouped.items():
        torch.testing.assert_close(gradient, expanded[name], rtol=0, atol=1e-9)


def test_scores_do_not_depend_on_batch_padding_or_order(tiny: Path) -> None:
    model, groups = made(tiny)
    model.eval()
    together = dict(score_groups(model, groups, PaddedRows(WIDE)))
    for i, own in score_groups(model, groups[::-1], PaddedRows(1, fill=77), at_a_time=1):
        assert own == pytest.approx(together[len(groups) - 1 - i], abs=1e-12)


def test_the_scored_position_is_the_last_by_length_even_where_text_holds_the_pad_token(tiny: Path) -> None:
    model, groups = made(tiny)
    model.eval()
    with torch.no_grad():
        row = list(groups[0].rows[0])
        odd = (*row[:-1], 0, 0)  # ends with what the padding is made of
        pair = Group("a", (tuple(odd), tuple(row) * 2), (1, 1))
        plain = PaddedRows(WIDE).scores(model, PaddedRows(WIDE).collate([pair]))
        single = alone_score(model, tuple(odd))
    assert plain[0].item() == pytest.approx(single[0].item(), abs=1e-12)


def test_dropout_is_off_and_all_linear_layers_but_the_head_are_adapted(tiny_gpt2: Path) -> None:
    model, groups = made(tiny_gpt2, torch.float32)
    model.train()
    layout = PaddedRows(WIDE)
    first, second = (layout.scores(model, layout.collate(groups)) for _ in range(2))
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
        assert PaddedRows(WIDE).scores(model, PaddedRows(WIDE).collate(groups)).dtype == torch.float32


def test_a_bfloat16_base_keeps_its_head_and_adapters_in_float32(tiny: Path) -> None:
    source = resolve(str(tiny), workspace=tiny)
    model = new_reward_model(source, lora_r=2, lora_alpha=4, dtype=torch.bfloat16)
    kinds = {p.requires_grad: p.dtype for n, p in model.named_parameters() if "original_module" not in n}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_a_batch_over_the_token_budget_gives_the_same_scores(tiny: Path) -> None:
    model, groups = made(tiny)
    with torch.no_grad():
        whole = PaddedRows(WIDE).scores(model, PaddedRows(WIDE).collate(groups))
        parts = PaddedRows(60).scores(model, PaddedRows(60).collate(groups))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)


def test_collating_lays_comparisons_beside_rows(tiny: Path) -> None:
    _, groups = made(tiny)
    batch = PaddedRows(WIDE).collate(groups)
    assert batch["input_ids"].shape == (sum(len(g.rows) for g in groups), max(len(r) for g in groups for r in g.rows))
    assert torch.equal(batch["chosen"], comparison_tensors(groups)["chosen"])


def test_a_model_without_a_score_head_gives_no_rewards(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"this model has no score head\. Train one with"):
        load_reward_model(resolve(str(tiny), workspace=tiny), dtype=torch.float32)
