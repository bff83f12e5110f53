"""A response as a strip of tokens: what is coloured how, and that text stays text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from annotate.token_strip import SHADES, Scale, numbers_view, scale_of, strip_view
from tests.train.made_rollouts import columns


def tokens(**changes: Any) -> list[dict[str, Any]]:
    """The first response of a step; `changes`: of its first token."""
    made = columns()
    count = made["response"].count(0)
    rows = [{name: values[i] for name, values in made.items()} for i in range(count)]
    return [{**rows[0], **changes}, *rows[1:]]


def drawn(shade: str = "advantage", *, reach: float = 1.0, signed: bool = True, **changes: Any) -> str:
    return strip_view(tokens(**changes), SHADES[shade], Scale(reach, signed))


def first(view: str) -> str:
    """The first token's tag."""
    return re.findall(r'<span class="token[^>]*>', view)[0]


@pytest.mark.parametrize("shade", SHADES)
@pytest.mark.parametrize(
    ("distance", "kind", "share"), [(0.5, "above", "0.50"), (-0.25, "below", "0.25"), (3.0, "above", "1.00")]
)
def test_a_token_is_coloured_by_its_side_and_distance(shade: str, distance: float, kind: str, share: str) -> None:
    tag = first(drawn(shade, **{shade: SHADES[shade].center + distance}))
    assert f'class="token {kind}"' in tag
    assert f'style="--share:{share}"' in tag


def test_every_token_is_there_with_all_its_numbers() -> None:
    own = tokens()
    view = strip_view(own, SHADES["kl"], Scale(1.0, signed=True))
    tags = re.findall(r'<span class="token[^>]*>', view)
    assert len(tags) == len(own)
    for number, (token, tag) in enumerate(zip(own, tags, strict=True)):
        assert f"token {number} of 0 to {len(own) - 1}, id {token['token_id']}" in tag
        for name, label, form in (
            ("log_prob", "log-prob", ".3f"), ("reference_log_prob", "reference", ".3f"), ("kl", "KL", "+.3f"),
            ("reward", "reward", "+.3f"), ("value", "value", ".3f"), ("return", "return", ".3f"),
            ("advantage", "advantage", "+.3f"), ("ratio", "ratio", ".3f"),
        ):  # fmt: skip
            assert f"{label} {token[name]:{form}}" in tag


def test_what_a_model_wrote_stays_text() -> None:
    view = drawn(text="<script>alert(1)</script>\"'${top.x}\u202e\n")
    assert "<script" not in view
    assert view.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;") == 2, "in the strip and under the pointer"
    assert "\u202e" not in view and "\\u202e⏎\n</span>" in view
    table = numbers_view(tokens(text="<img src=x onerror=alert(1)>"))
    assert "<img" not in table and "<code>&lt;img src=x" in table


def test_a_token_without_text_and_one_not_learned_from_are_marked() -> None:
    tag = first(drawn(text="", advantage=0.5))
    assert 'class="token above part"' in tag and 'data-numbers="part of a letter  token 0' in tag
    view = drawn(mask=False)
    assert "rest" in first(view) and "(not learned from)" in first(view)
    assert "Dotted: not learned from." in view
    assert "Dotted" not in strip_view([{**t, "mask": True} for t in tokens()], SHADES["kl"], Scale(1.0, signed=True))


def test_without_a_critic_nothing_is_said_of_values() -> None:
    own = [{**token, "value": None, "return": None} for token in tokens()]
    view = strip_view(own, SHADES["advantage"], Scale(1.0, signed=True)) + numbers_view(own)
    assert "value" not in view and "return" not in view


def test_the_scale_holds_all_but_the_few_that_are_farthest() -> None:
    scale = scale_of([0.1] * 97 + [-0.2, 5.0, -9.0], 0.0)
    assert (scale.reach, scale.signed) == (0.2, True)
    assert [scale.share(x) for x in (0.1, -0.2, 5.0, -9.0)] == [0.5, -1.0, 1.0, -1.0]
    assert scale_of([1.0, 1.5], 1.0) == Scale(0.5, signed=False)


def test_where_most_are_equal_the_farthest_sets_the_scale() -> None:
    assert scale_of([0.0] * 99 + [2.0], 0.0).reach == 2.0


def test_the_legend_names_both_ends_and_what_they_mean() -> None:
    view = drawn("ratio", reach=0.2)
    assert [view.index(f"<span>{end}</span>") for end in ("0.800", "1.000", "1.200")] == sorted(
        view.index(f"<span>{end}</span>") for end in ("0.800", "1.000", "1.200")
    )
    assert "Ratio: more likely after the step in blue, less likely after the step in orange." in view


def test_numbers_that_are_never_below_have_one_side_only() -> None:
    view = drawn("kl", signed=False)
    assert "orange" not in view and "ramp below" not in view and "ramp above" in view


def test_a_step_in_which_all_are_equal_says_so() -> None:
    view = drawn("ratio", reach=0.0)
    assert "Ratio: 1.000 at every token of this step." in view
    assert "ramp" not in view
    assert 'style="--share:0.00"' in first(view)


def test_the_table_has_a_row_a_token() -> None:
    own = tokens()
    table = numbers_view(own)
    assert table.count("<tr>") == len(own) + 1
    last = own[-1]
    assert f"<td>{last['advantage']:+.3f}</td><td>{last['ratio']:.3f}</td>" in table
