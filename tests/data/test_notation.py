"""Ranking notation: what is read, how it is written, and where it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from data.notation import Ranking, format_ranking, parse_ranking


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Ranking, int]:
    """Any ranking of up to nine responses, some unranked, with or without a bar."""
    responses = draw(st.integers(1, 9))
    numbers = draw(st.permutations(range(1, responses + 1)))
    ranked = list(numbers[: draw(st.integers(1, responses))])
    tiers: list[list[int]] = [[ranked[0]]]
    for number in ranked[1:]:
        if draw(st.booleans()):
            tiers[-1].append(number)
        else:
            tiers.append([number])
    bar = draw(st.none() | st.integers(0, len(tiers)))
    return Ranking(tuple(tuple(sorted(tier)) for tier in tiers), bar), responses


@given(rankings())
def test_what_is_formatted_is_parsed_back(case: tuple[Ranking, int]) -> None:
    ranking, responses = case
    assert parse_ranking(format_ranking(ranking), responses) == ranking


@given(rankings(), st.randoms())
def test_relabelling_there_and_back_changes_nothing(case: tuple[Ranking, int], random) -> None:  # type: ignore[no-untyped-def]
    ranking, responses = case
    there = list(range(1, responses + 1))
    random.shuffle(there)
    back = [there.index(n) + 1 for n in range(1, responses + 1)]
    assert ranking.relabel(there).relabel(back) == ranking


@given(st.text(max_size=30), st.integers(1, 9))
def test_any_text_is_either_read_or_refused_with_its_place(text: str, responses: int) -> None:
    try:
        ranking = parse_ranking(text, responses)
    except BadInput as error:
        assert ", place " in str(error)
    else:
        assert parse_ranking(format_ranking(ranking), responses) == ranking


@pytest.mark.parametrize(
    ("text", "written", "ranks", "bar"),
    [
        ("A2>A1=A3|A4", "A2>A1=A3|A4", {2: 1, 1: 2, 3: 2, 4: 3}, 2),
        ("A2", "A2", {2: 1}, None),
        ("|A1>A2", "|A1>A2", {1: 1, 2: 2}, 0),
        ("A1>A2|", "A1>A2|", {1: 1, 2: 2}, 2),
        (" a2 ＞ 1=A3 ", "A2>A1=A3", {2: 1, 1: 2, 3: 2}, None),
        ("Ａ２》Ａ１＝Ａ３｜Ａ４", "A2>A1=A3|A4", {2: 1, 1: 2, 3: 2, 4: 3}, 2),
        ("3=1", "A1=A3", {1: 1, 3: 1}, None),
    ],
)
def test_readings(text: str, written: str, ranks: dict[int, int], bar: int | None) -> None:
    ranking = parse_ranking(text, 4)
    assert (str(ranking), ranking.ranks, ranking.bar) == (written, ranks, bar)


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ("", 1, "the ranking is empty"),
        ("   ", 4, "the ranking is empty"),
        ("|", 2, "the ranking is empty"),
        ("A1>A9", 4, "A9 does not exist"),
        ("A0", 1, "A0 does not exist"),
        ("A1>", 4, "the ranking ends where a response is expected"),
        ("A1>>A2", 4, "'>' where a response such as A1 is expected"),
        ("A1>A2>A1", 7, "A1 appears twice"),
        ("A1|A2|A3", 6, "a second bar '|'"),
        ("|A1|A2", 4, "a second bar '|'"),
        ("A1>|A2", 4, "'|' where a response such as A1 is expected"),
        ("A1 A2", 4, "'A' is not '>', '=' or '|'"),
        ("A1,A2", 3, "',' is not '>', '=' or '|'"),
        ("B1", 1, "'B' where a response such as A1 is expected"),
        ("A" + "9" * 5000, 1, "does not exist"),
    ],
)
def test_refusals_name_the_place_and_the_rule(text: str, place: int, found: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_ranking(text, 3)
    message = str(refusal.value)
    assert f"place {place}: " in message
    assert found in message
    assert "the responses are A1 to A3" in message
    assert len(message) < 300
