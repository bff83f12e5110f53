"""Rewards of mean 0 and deviation 1, in the head's weights alone, with the order within each prompt kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import BadInput
from tests.train import families
from tests.train.families import reward_model
from tests.train.test_layouts import made_groups
from train import normalization
from train.layouts import PaddedRows, TreeRows, score_groups
from train.normalization import logit_scale, normalize_rewards, write_normalization

LAYOUT = PaddedRows(4096)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def rewards(model, groups) -> list[torch.Tensor]:
    found = dict(score_groups(model, groups, LAYOUT))
    return [torch.tensor(found[i], dtype=torch.float64) for i in range(len(groups))]


def with_level(model, level: float):
    """Raise every reward by about as much, as trainings do: along the states' mean."""
    head = normalization._trained_head(model)
    states, _ = normalization._scored_states(model, made_groups(), LAYOUT)
    with torch.no_grad():
        head.weight += (level * normalization._even_direction(states, ridge=1e-3)).to(head.weight.dtype)
    return model


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_rewards_have_mean_0_and_deviation_1_and_keep_their_distances(family: str, folder: Path) -> None:
    model = with_level(reward_model(families.folder(family, folder), dtype=torch.float32), 0.5)
    groups = made_groups(60)
    before = rewards(model, groups)
    found = normalize_rewards(model, groups, LAYOUT)
    after = rewards(model, groups)
    flat = torch.cat(after)
    assert found is not None
    assert flat.mean().item() == pytest.approx(0, abs=1e-4)
    assert flat.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert found.mean_before == pytest.approx(torch.cat(before).mean().item(), abs=1e-4)
    assert found.std_before == pytest.approx(torch.cat(before).std(correction=0).item(), abs=1e-4)
    for b, a in zip(before, after, strict=True):
        expected, gap = (b - b.mean()) / found.std_before, a - a.mean()
        assert (gap - expected).abs().max() < 0.15
    assert 0 < found.distortion < 0.05


def test_a_level_that_cannot_be_shifted_without_changing_the_order_stays_and_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(normalization, "_MAX_DISTORTION", -1.0)
    model, groups = reward_model(families.folder("llama", folder), dtype=torch.float32), made_groups()
    before = torch.cat(rewards(model, groups))
    with caplog.at_level("INFO"):
        found = normalize_rewards(model, groups, LAYOUT)
    assert found is not None
    after = torch.cat(rewards(model, groups))
    torch.testing.assert_close(after, before / found.std_before, rtol=0, atol=1e-5)
    assert any(m.startswith("the rewards' mean stays at") for m in caplog.messages)


def test_the_distortion_is_that_of_prompts_the_direction_was_not_fitted_to() -> None:
    """Fewer states than dimensions: on its own states the fit is perfect, and says nothing."""
    states = 1 + 0.2 * torch.randn(60, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    prompts, level = torch.arange(60) // 4, torch.tensor(2.0, dtype=torch.float64)
    own = level * (states @ normalization._even_direction(states, ridge=1e-3))
    assert (own - level).abs().max() < 0.01
    honest = normalization._distortion(states, prompts, level=level, ridge=1e-3)
    direction = normalization._even_direction(states, ridge=1e-3)
    new = 1 + 0.2 * torch.randn(4000, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert honest == pytest.approx(float((level * (new @ direction)).std()), rel=0.5)


def test_rewards_that_are_no_numbers_end_in_a_sentence(folder: Path) -> None:
    model = reward_model(families.folder("llama", folder), dtype=torch.float32)
    with torch.no_grad():
        normalization._trained_head(model).weight.fill_(float("nan"))
    with pytest.raises(BadInput, match="no finite numbers"):
        normalize_rewards(model, made_groups(), LAYOUT)


def test_equal_rewards_are_left_alone(folder: Path) -> None:
    model = reward_model(families.folder("llama", folder), dtype=torch.float32)
    head = normalization._trained_head(model)
    torch.nn.init.zeros_(head.weight)
    assert normalize_rewards(model, made_groups(), LAYOUT) is None
    assert not head.weight.any()


def test_both_layouts_find_the_same_states(folder: Path) -> None:
    model, groups = reward_model(families.folder("llama", folder)), made_groups()
    model.get_base_model().set_attn_implementation("tree")
    one, of = normalization._scored_states(model, groups, LAYOUT)
    other, also_of = normalization._scored_states(model, groups, TreeRows(4096))
    assert torch.equal(of, also_of)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not model.training or model.train().training


def test_the_scale_is_kept_with_the_model(tmp_path: Path, folder: Path) -> None:
    assert logit_scale(tmp_path) == logit_scale(None) == 1.0
    found = normalize_rewards(
        reward_model(families.folder("llama", folder), dtype=torch.float32), made_groups(), LAYOUT
    )
    assert found is not None
    write_normalization(found, tmp_path)
    assert logit_scale(tmp_path) == found.std_before
