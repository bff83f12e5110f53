"""Agreement of scores with rankings, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from data.comparisons import expand
from data.notation import parse_ranking
from train.evaluation import agreement, evaluate
from train.groups import Group
from train.losses import pairwise_loss


def group(*rankings: str, chars: tuple[int, ...]) -> Group:
    parsed = tuple(parse_ranking(text, len(chars)) for text in rankings)
    comparisons = tuple(c for r in parsed for c in expand(r, len(chars)).comparisons)
    return Group("p", tuple((i, 9) for i in range(len(chars))), chars, parsed, comparisons)


def test_wins_half_wins_and_top_places_are_counted_by_hand() -> None:
    groups = [group("A2>A1=A3", chars=(5, 9, 1)), group("A1>A2", "A2>A1", chars=(2, 2))]
    found = agreement(groups, [[0.1, 0.7, 0.7], [1.0, 0.0]])
    # A2>A1 won, A2>A3 tied; A1>A2 won, A2>A1 lost.
    assert found.accuracy == (1 + 0.5 + 1 + 0) / 4
    assert found.scored_ties == 1
    # A2 and A3 share the best score, one of them is best; then right, then wrong.
    assert found.top1 == pytest.approx((0.5 + 1 + 0) / 3)
    longer = agreement(groups, [g.chars for g in groups])
    assert longer.accuracy == (1 + 1 + 0.5 + 0.5) / 4


def test_ties_alone_leave_nothing_to_count() -> None:
    found = agreement([group("A1=A2", chars=(1, 2))], [[0.0, 1.0]])
    assert (found.accuracy, found.top1, found.scored_ties) == (None, None, 0)


class _Fixed:
    """A layout that scores the groups as told."""

    def __init__(self, scores: list[float]) -> None:
        self.told = torch.tensor(scores)

    def collate(self, groups):
        return {"first": torch.tensor([g.rows[0][0] for g in groups])}

    def scores(self, model, batch):
        return self.told


def test_the_loss_is_the_training_loss_and_the_model_goes_back_to_training() -> None:
    one = group("A2>A1=A3", "A1>A3", chars=(5, 9, 1))
    scores = [0.3, -0.2, 1.5]
    model = nn.Linear(1, 1).train()
    found = evaluate(model, [one], _Fixed(scores))
    told = torch.tensor(scores, dtype=torch.float64)
    preference = torch.tensor([c.preference for c in one.comparisons], dtype=torch.float64)
    weight = torch.tensor([c.weight for c in one.comparisons], dtype=torch.float64)
    expected = pairwise_loss(
        told[[c.chosen - 1 for c in one.comparisons]],
        told[[c.rejected - 1 for c in one.comparisons]],
        preference=preference,
        weight=weight,
    )
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert (found["pairs"], found["ties"], found["prompts"], found["responses"]) == (3, 1, 1, 3)
    assert found["tie_gap"] == pytest.approx(1.2, abs=1e-6)
    assert model.training
    assert math.isfinite(found["reward_std"])
