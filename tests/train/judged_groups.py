"""Groups of rankings written by hand, with no tokens to speak of."""

from __future__ import annotations

from data.comparisons import expand
from data.notation import parse_ranking
from train.groups import Group


def group(*rankings: str, chars: tuple[int, ...], by: tuple[str, ...] = ()) -> Group:
    """One prompt; `chars`: one length a response; `by`: who made each ranking (ann, bob, cy where left out)."""
    parsed = tuple(parse_ranking(text, len(chars)) for text in rankings)
    return Group(
        prompt_id="p",
        rows=tuple((i, 9) for i in range(len(chars))),
        chars=chars,
        rankings=parsed,
        comparisons=tuple(c for r in parsed for c in expand(r, len(chars)).comparisons),
        annotators=by or ("ann", "bob", "cy")[: len(rankings)],
    )
