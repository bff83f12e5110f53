"""How well rewards agree with the rankings, beside the baseline that every reward model must beat: the longer wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from torch import nn

from data.errors import BadInput
from train.agreement import agreement, annotator_agreement, by_annotator, by_margin
from train.calibration import accuracy_with_ties, calibration
from train.correlations import length_correlation, ranking_correlation
from train.evaluation_plot import ScoredResponse, draw_evaluation
from train.groups import Group
from train.judged import judged_pairs, mean, strict
from train.layouts import Layout, score_groups


@dataclass(frozen=True)
class Evaluation:
    """A reward model's measures, with what they were taken from.

    `found`: what `measure` gives, ready for JSON. `points`: each response with its reward, for the drawing.
    """

    found: Mapping[str, Any]
    points: Sequence[ScoredResponse]

    @classmethod
    def of(cls, model: nn.Module, groups: Sequence[Group], layout: Layout, *, scale: float = 1.0) -> Evaluation:
        """Score all responses, in evaluation mode, and measure. Raises BadInput where a reward is not finite."""
        training = model.training
        model.eval()
        by_number = dict(score_groups(model, groups, layout))
        model.train(training)
        scores = [by_number[i] for i in range(len(groups))]
        _check_finite(groups, scores)
        return cls(found=measure(groups, scores, scale=scale), points=scored_responses(groups, scores))

    def draw(self, path: Path) -> None:
        """Write the drawing, a PNG file."""
        draw_evaluation(path, self.found, points=self.points)


def evaluate(model: nn.Module, groups: Sequence[Group], layout: Layout, *, scale: float = 1.0) -> dict[str, Any]:
    """`measure` of a model's rewards. Raises BadInput where a reward is not finite."""
    return dict(Evaluation.of(model, groups, layout, scale=scale).found)


def measure(groups: Sequence[Group], scores: Sequence[Sequence[float]], *, scale: float = 1.0) -> dict[str, Any]:
    """All measures, ready for JSON; None where there is nothing to count.

    `scores`: one list a group, one number a response. `scale`: what turns a difference of scores into the logit of a
    preference, for the loss and the calibration (rewards brought to deviation 1 have another scale than they learned).
    `loss` is the Bradley-Terry loss of the groups' comparisons; all else is counted over each ranking's own. `pairs`
    are strict; `ties` says how many comparisons are not, and `tie_gap` how far apart their scores are on average.
    `longer_wins` is the agreement of the responses' lengths. The rest is explained where it is counted:
    `train.agreement`, `train.calibration`, `train.correlations`.
    """
    pairs = judged_pairs(groups, scores)
    judged_better = strict(pairs)
    ties = [abs(p.gap) for p in pairs if p.margin == 0]
    with_ties, threshold = accuracy_with_ties(pairs)
    tau, tau_rankings = ranking_correlation(groups, scores)
    rewards = [s for own in scores for s in own]
    return {
        "prompts": len(groups),
        "responses": len(rewards),
        "pairs": len(judged_better),
        "ties": len(ties),
        "loss": _loss(groups, scores, scale=scale),
        **asdict(agreement(groups, scores)),
        "accuracy_with_ties": with_ties,
        "tie_threshold": threshold,
        "kendall_tau_b": tau,
        "kendall_rankings": tau_rankings,
        "longer_wins": asdict(agreement(groups, [g.chars for g in groups])),
        "annotator_agreement": annotator_agreement(pairs),
        "margin": mean([p.gap for p in judged_better]),
        "tie_gap": mean(ties),
        "reward_mean": fmean(rewards),
        "reward_std": pstdev(rewards),
        "length": length_correlation(groups, scores),
        "calibration": calibration(pairs, scale=scale),
        "by_margin": by_margin(pairs),
        "by_annotator": by_annotator(pairs),
    }


def scored_responses(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[ScoredResponse]:
    """Every response with its length, its reward and the ranks it was given."""
    return [
        ScoredResponse(
            chars=chars,
            reward=reward,
            lead=reward - fmean(own),
            ranks=tuple(r.ranks[n] for r in g.rankings if n in r.ranks),
        )
        for g, own in zip(groups, scores, strict=True)
        for n, (chars, reward) in enumerate(zip(g.chars, own, strict=True), start=1)
    ]


def _check_finite(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> None:
    for g, own in zip(groups, scores, strict=True):
        for n, reward in enumerate(own, start=1):
            if not math.isfinite(reward):
                raise BadInput(
                    f"prompt {g.prompt_id}: the reward of response A{n} is {reward}, which is no finite number. "
                    "Leave out --bf16, or train again with a lower --learning_rate."
                )


def _loss(groups: Sequence[Group], scores: Sequence[Sequence[float]], *, scale: float) -> float | None:
    """`losses.pairwise_loss` over all comparisons."""
    found = [
        (scale * (own[c.chosen - 1] - own[c.rejected - 1]), c)
        for g, own in zip(groups, scores, strict=True)
        for c in g.comparisons
    ]
    total = sum(c.weight * (c.preference * _softplus(-gap) + (1 - c.preference) * _softplus(gap)) for gap, c in found)
    return total / sum(c.weight for _, c in found) if found else None


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
