"""Agreement of scores with rankings, and of people with each other, counted by hand."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from tests.train.judged_groups import group
from train.agreement import agreement, annotator_agreement, by_annotator, by_margin
from train.judged import judged_pairs


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


def test_accuracy_is_told_apart_by_tier_distance() -> None:
    # Distance 1: A1>A2 lost, A2>A3 won, A3>A4 tied; 2: A1>A3 won, A2>A4 won; 3: A1>A4 won.
    pairs = judged_pairs([group("A1>A2>A3>A4", chars=(1, 1, 1, 1))], [[2.0, 3.0, 1.0, 1.0]])
    assert by_margin(pairs) == [
        {"margin": 1, "accuracy": 0.5, "pairs": 3},
        {"margin": 2, "accuracy": 1.0, "pairs": 2},
        {"margin": 3, "accuracy": 1.0, "pairs": 1},
    ]


def test_annotators_are_listed_by_pairs_and_one_with_ties_only_is_not_dropped() -> None:
    groups = [
        group("A1>A2>A3", "A3>A1", chars=(1, 1, 1), by=("bob", "ann")),
        group("A2>A1", "A1=A2", chars=(1, 1), by=("ann", "cy")),
    ]
    pairs = judged_pairs(groups, [[3.0, 2.0, 1.0], [0.0, 1.0]])
    assert by_annotator(pairs) == [
        {"annotator": "bob", "accuracy": 1.0, "pairs": 3},
        {"annotator": "ann", "accuracy": 0.5, "pairs": 2},
        {"annotator": "cy", "accuracy": None, "pairs": 0},
    ]


def test_people_agree_where_they_prefer_the_same_of_two_responses() -> None:
    # A1,A2: ann and bob agree, cy does not: 1 of 3. A1,A3: ann and bob disagree. A2,A3: bob alone, ann tied.
    groups = [group("A1>A2=A3", "A3>A1>A2", "A2>A1", chars=(1, 1, 1)), group("A1>A2", chars=(1, 1))]
    assert annotator_agreement(judged_pairs(groups, [[0.0, 0.0, 0.0], [0.0, 0.0]])) == {
        "agreement": 1 / 4,
        "pairs": 4,
    }


@pytest.mark.parametrize("rankings", [("A1>A2",), ("A1>A2", "A1=A2"), ("A1>A2", "A3>A4")])
def test_people_who_never_preferred_within_one_pair_have_no_agreement(rankings: tuple[str, ...]) -> None:
    pairs = judged_pairs([group(*rankings, chars=(1, 1, 1, 1))], [[0.0] * 4])
    assert annotator_agreement(pairs) is None


def test_a_model_as_good_as_one_more_annotator_scores_the_agreement() -> None:
    """Everybody, the model included, prefers A1 with probability 0.8: two of them agree 0.8² + 0.2² = 0.68 of the time.

    Knowing the majority, a model agrees with single people 0.8 of the time: more than they with each other.
    """
    random = Random(7)
    votes = [["A1>A2" if random.random() < 0.8 else "A2>A1" for _ in range(4)] for _ in range(4000)]
    groups = [group(*three, chars=(1, 1)) for *three, _ in votes]
    people = annotator_agreement(judged_pairs(groups, [[0.0, 0.0]] * len(groups)))
    assert people is not None
    assert people["pairs"] == 3 * 4000
    one_more = agreement(groups, [[1.0, 0.0] if own == "A1>A2" else [0.0, 1.0] for *_, own in votes])
    assert people["agreement"] == pytest.approx(0.68, abs=0.02)
    assert one_more.accuracy == pytest.approx(0.68, abs=0.02)
    assert agreement(groups, [[1.0, 0.0]] * len(groups)).accuracy == pytest.approx(0.8, abs=0.02)


def test_agreement_is_what_counting_every_two_people_gives() -> None:
    random = Random(3)
    groups = []
    for _ in range(30):
        texts = []
        for _ in range(random.randint(1, 4)):
            order = random.sample(range(1, 5), random.randint(1, 4))
            texts.append("".join(f"A{n}{random.choice('>=')}" for n in order)[:-1])
        groups.append(group(*texts, chars=(1, 1, 1, 1), by=tuple(f"p{i}" for i in range(len(texts)))))
    outcomes = []
    for g in groups:
        for one, other in combinations(g.rankings, 2):
            for a, b in combinations(set(one.ranks) & set(other.ranks), 2):
                sides = [(r.ranks[a] > r.ranks[b]) - (r.ranks[a] < r.ranks[b]) for r in (one, other)]
                if all(sides):
                    outcomes.append(sides[0] == sides[1])
    assert annotator_agreement(judged_pairs(groups, [[0.0] * 4] * 30)) == {
        "agreement": sum(outcomes) / len(outcomes),
        "pairs": len(outcomes),
    }
