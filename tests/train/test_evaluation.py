"""The measures of a model put together."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.comparisons import Comparison
from data.errors import BadInput
from tests.train.judged_groups import group
from train.evaluation import Evaluation, evaluate, measure, scored_responses
from train.layouts import PaddedRows
from train.losses import pairwise_loss

PADDED = PaddedRows(tokens_per_forward=64)


class _Told(nn.Module):
    """Scores the responses of `judged_groups.group` as told: their first token is their number."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.told = nn.Parameter(torch.tensor(scores))

    def forward(self, input_ids: Tensor, **unused: Any) -> Tensor:
        return self.told[input_ids[:, 0]]


def test_the_loss_is_the_training_loss_and_the_model_goes_back_to_training() -> None:
    one = group("A2>A1=A3", "A1>A3", chars=(5, 9, 1))
    scores = [0.3, -0.2, 1.5]
    model = _Told(*scores).train()
    found = evaluate(model, [one], PADDED)
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


def test_soft_votes_change_the_loss_alone() -> None:
    """Two people say A1>A2, one says A2>A1; training may see it as one comparison with the label 2/3."""
    each = group("A1>A2", "A1>A2", "A2>A1", chars=(4, 2))
    vote = Comparison(chosen=1, rejected=2, margin=1, weight=1.0, preference=2 / 3)
    soft = replace(each, comparisons=(vote,))
    scores = [[2.0, 1.5]]
    ours, theirs = measure([soft], scores), measure([each], scores)
    assert (ours["accuracy"], ours["pairs"], ours["margin"]) == (pytest.approx(2 / 3), 3, pytest.approx(0.5 / 3))
    assert ours["loss"] == pytest.approx(theirs["loss"])
    assert {**ours, "loss": 0} == {**theirs, "loss": 0}
    hard = replace(each, comparisons=(replace(vote, preference=1.0),))
    assert measure([hard], scores)["loss"] != pytest.approx(theirs["loss"])


NOTHING_TO_COUNT = {
    "a tie alone": group("A1=A2", chars=(3, 3)),
    "one ranked response": group("A1", chars=(3, 3)),
    "no ranking": group(chars=(3, 3)),
}


@pytest.mark.parametrize("scores", [[1.0, 1.0], [1.0, 0.0]])
@pytest.mark.parametrize("name", NOTHING_TO_COUNT)
def test_what_cannot_be_counted_is_none_and_never_nan(name: str, scores: list[float], tmp_path: Path) -> None:
    groups = [NOTHING_TO_COUNT[name]]
    found = measure(groups, [scores])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for key in ("accuracy", "top1", "kendall_tau_b", "annotator_agreement", "margin"):
        assert found[key] is None, key
    assert found["by_margin"] == []
    assert found["length"] == {"pearson": None, "spearman": None, "within_prompt": None, "prompts": 0}
    assert found["longer_wins"]["accuracy"] is None
    Evaluation(found, scored_responses(groups, [scores])).draw(tmp_path / "eval.png")
    assert (tmp_path / "eval.png").stat().st_size > 1000


def test_every_measure_is_plain_json_and_the_old_names_stay() -> None:
    groups = [group("A2>A1=A3", "A3>A1>A2", chars=(5, 9, 1)), group("A1>A2", chars=(8, 3))]
    found = measure(groups, [[0.1, 0.4, -0.3], [1.0, 0.2]])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    old = (
        "prompts responses pairs ties loss accuracy top1 scored_ties longer_wins margin tie_gap reward_mean reward_std"
    )
    new = "accuracy_with_ties tie_threshold kendall_tau_b kendall_rankings calibration by_margin by_annotator length"
    assert set(found) == {*old.split(), *new.split(), "annotator_agreement"}
    assert sum(row["pairs"] for row in found["by_margin"]) == found["pairs"]
    assert sum(row["pairs"] for row in found["by_annotator"]) == found["pairs"]
    assert sum(b["pairs"] for b in found["calibration"]["bins"]) == found["pairs"] + found["ties"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(BadInput, match=r"prompt p: the reward of response A2 is (nan|inf)"):
        evaluate(_Told(0.5, bad), [group("A1>A2", chars=(1, 2))], PADDED)


def test_the_points_carry_length_reward_and_every_rank() -> None:
    one = group("A2>A1", "A1>A2=A3", chars=(5, 9, 1))
    points: list[Any] = scored_responses([one], [[1.0, 2.0, 6.0]])
    assert [(p.chars, p.reward, p.lead, p.ranks) for p in points] == [
        (5, 1.0, -2.0, (2, 1)),
        (9, 2.0, -1.0, (1, 2)),
        (1, 6.0, 3.0, (2,)),
    ]


def test_one_call_evaluates_and_one_draws(tmp_path: Path) -> None:
    done = Evaluation.of(_Told(0.5, 0.1), [group("A1>A2", chars=(1, 2))], PADDED)
    done.draw(tmp_path / "eval.png")
    assert done.found["accuracy"] == 1.0
    assert (tmp_path / "eval.png").read_bytes().startswith(b"\x89PNG")


def test_rewards_on_another_scale_keep_the_loss_and_the_calibration() -> None:
    """Rewards brought to another deviation are read back with `scale`; who wins does not change anyway."""
    groups = [group("A2>A1=A3", "A3>A1>A2", chars=(5, 9, 1))]
    learned, brought = measure(groups, [[0.1, 0.4, -0.3]]), measure(groups, [[0.4, 1.6, -1.2]], scale=0.25)
    assert brought["loss"] == pytest.approx(learned["loss"])
    assert brought["calibration"]["ece"] == pytest.approx(learned["calibration"]["ece"])
    assert brought["margin"] == pytest.approx(4 * learned["margin"])
    assert measure(groups, [[0.4, 1.6, -1.2]])["loss"] != pytest.approx(learned["loss"])
