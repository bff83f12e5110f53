"""A response as a strip of its tokens, each coloured by one of its numbers; all its numbers show under the pointer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from annotate import panel
from annotate.curves import short
from train.jobs import visible

_WITHIN = 0.98
"""Share of a step's tokens whose distance the scale holds; the few beyond take its end colour."""
_NUMBERS = (
    (("log_prob", "log-prob"), ("reference_log_prob", "reference"), ("kl", "KL")),
    (("reward", "reward"), ("value", "value"), ("return", "return")),
    (("advantage", "advantage"), ("ratio", "ratio")),
)
"""The lines that show under the pointer."""
_SIGNED = ("kl", "reward", "advantage")

Token = Mapping[str, Any]


@dataclass(frozen=True)
class Shade:
    """What colours a token. `center`: the number that has no colour; `less` and `more`: what lies on either side."""

    name: str
    label: str
    less: str
    more: str
    center: float = 0.0


SHADES: Mapping[str, Shade] = {
    shade.name: shade
    for shade in (
        Shade("advantage", "Advantage", "worse than expected", "better than expected"),
        Shade("kl", "KL", "less likely than under the reference", "more likely than under the reference"),
        Shade("reward", "Reward", "taken off", "given"),
        Shade("ratio", "Ratio", "less likely after the step", "more likely after the step", center=1.0),
    )
}
"""By the name of the column."""


@dataclass(frozen=True)
class Scale:
    """How far from the center colours reach. `signed`: the step has numbers below the center too."""

    reach: float
    signed: bool

    def share(self, distance: float) -> float:
        """From -1 to 1."""
        return min(max(distance / self.reach, -1.0), 1.0) if self.reach else 0.0


def scale_of(values: Iterable[float], center: float) -> Scale:
    """The scale for a step's numbers, so that its responses can be compared by colour."""
    distances = [value - center for value in values]
    sizes = sorted(map(abs, distances))
    common = sizes[int(_WITHIN * (len(sizes) - 1))]
    return Scale(reach=common or sizes[-1], signed=min(distances) < 0)


def strip_view(tokens: Sequence[Token], shade: Shade, scale: Scale) -> str:
    """The scale, then the tokens."""
    pieces = "".join(_piece(number, token, tokens, shade, scale) for number, token in enumerate(tokens))
    rest = any(not token["mask"] for token in tokens)
    return f'{_legend(shade, scale, rest=rest)}<div class="strip" dir="auto">{pieces}</div>'


def numbers_view(tokens: Sequence[Token]) -> str:
    """The same as a table, for whoever has no pointer or wants to copy it."""
    columns = [(name, label) for line in _NUMBERS for name, label in line if tokens[0][name] is not None]
    rows = [
        [
            str(number),
            f"<code>{panel.escaped(visible(token['text']))}</code>",
            *(_number(token, name) for name, _ in columns),
            "yes" if token["mask"] else "no",
        ]
        for number, token in enumerate(tokens)
    ]
    return panel.table(["#", "Token", *(label for _, label in columns), "learned"], rows)


def _piece(number: int, token: Token, tokens: Sequence[Token], shade: Shade, scale: Scale) -> str:
    share = scale.share(token[shade.name] - shade.center)
    kinds = ["token", "above" if share > 0 else "below", *([] if token["mask"] else ["rest"])]
    text = visible(token["text"]).replace("⏎", "⏎\n")
    if not text:
        kinds.append("part")
    return (
        f'<span class="{" ".join(kinds)}" style="--share:{abs(share):.2f}" '
        f'data-numbers="{panel.escaped(_all_numbers(number, token, len(tokens)))}">{panel.escaped(text or "·")}</span>'
    )


def _all_numbers(number: int, token: Token, count: int) -> str:
    text = f"'{visible(token['text'])}'" if token["text"] else "part of a letter"
    learned = "" if token["mask"] else " (not learned from)"
    lines = [f"{text}  token {number} of 0 to {count - 1}, id {token['token_id']}{learned}"]
    for line in _NUMBERS:
        words = [f"{label} {_number(token, name)}" for name, label in line if token[name] is not None]
        lines.append("   ".join(words))
    return "\n".join(lines)


def _number(token: Token, name: str) -> str:
    value = token[name]
    return "" if value is None else f"{value:+.3f}" if name in _SIGNED else f"{value:.3f}"


def _legend(shade: Shade, scale: Scale, *, rest: bool) -> str:
    low, high = (short(shade.center + end * scale.reach) for end in (-1, 1))
    words = f"{shade.label}: {shade.more} in blue" + (f", {shade.less} in orange" if scale.signed else "")
    if not scale.reach:
        return _quiet(f"{shade.label}: {short(shade.center)} at every token of this step.")
    left = f'<span>{panel.escaped(low)}</span><span class="ramp below"></span>' if scale.signed else ""
    ramp = (
        f'<div class="scale" role="img" aria-label="{panel.escaped(words)}">{left}<span>{short(shade.center)}</span>'
        f'<span class="ramp above"></span><span>{panel.escaped(high)}</span></div>'
    )
    beyond = " The strongest colour: this far or farther."
    dotted = " Dotted: not learned from." if rest else ""
    return ramp + _quiet(f"{words}.{beyond}{dotted} Point at a token for its numbers.")


def _quiet(text: str) -> str:
    return f'<p class="quiet">{panel.escaped(text)}</p>'
