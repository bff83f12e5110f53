"""The ranking notation, `A2>A1=A3|A4`: parse, format, relabel.

`>` better than, `=` tied with, `|` the acceptable bar (everything after it is unacceptable). The bar takes the place of
a `>`; at the front it means "all bad", at the end "all acceptable", and a ranking without one did not judge
acceptability. A response left out is unranked: neither last nor tied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import BadInput

# What people type on a Chinese keyboard, or for lack of the right key. One character to one, so positions stay true.
_SAME_MEANING = str.maketrans("＞》〉＝≈~｜∣Ａａa０１２３４５６７８９\u3000", ">>>===||AAA0123456789 ")


@dataclass(frozen=True)
class Ranking:
    """Tiers of response numbers, best first, and where the acceptable bar stands.

    `tiers`: each a tuple of distinct numbers 1…K, ascending, so that equal judgements are equal; one tier is a tie.
    `bar`: how many tiers are acceptable (0 = all bad, len(tiers) = all acceptable), None = not judged.
    """

    tiers: tuple[tuple[int, ...], ...]
    bar: int | None = None

    def __post_init__(self) -> None:
        numbers = [n for tier in self.tiers for n in tier]
        assert all(self.tiers) and len(set(numbers)) == len(numbers) and all(n >= 1 for n in numbers), self
        assert all(list(tier) == sorted(tier) for tier in self.tiers), self
        assert self.bar is None or 0 <= self.bar <= len(self.tiers), self

    @property
    def ranks(self) -> dict[int, int]:
        """Rank of each ranked response number; 1 is best, equal ranks are ties."""
        return {n: rank for rank, tier in enumerate(self.tiers, start=1) for n in tier}

    def relabel(self, new_number: Sequence[int]) -> Ranking:
        """The same judgement under other labels: number n becomes `new_number[n - 1]`."""
        return Ranking(tuple(tuple(sorted(new_number[n - 1] for n in tier)) for tier in self.tiers), self.bar)

    def __str__(self) -> str:
        return format_ranking(self)


def format_ranking(ranking: Ranking) -> str:
    """`A2>A1=A3|A4`; equal rankings have equal texts."""
    groups = ["=".join(f"A{n}" for n in tier) for tier in ranking.tiers]
    if ranking.bar is None:
        return ">".join(groups)
    return ">".join(groups[: ranking.bar]) + "|" + ">".join(groups[ranking.bar :])


def parse_ranking(text: str, responses: int) -> Ranking:
    """Read `text`, a ranking of `responses` candidates labelled A1…AK.

    Spaces, lower case, full-width signs and labels without the A are accepted.
    Raises BadInput with the place (1 is the first character) and the rule.
    """
    return _Parser(text, responses).parse()


class _Parser:
    """One pass over the characters: a label, then a separator, then a label, …"""

    def __init__(self, text: str, responses: int) -> None:
        self.text = text
        self.source = text.translate(_SAME_MEANING)
        self.responses = responses
        self.at = 0
        self.seen: set[int] = set()

    def parse(self) -> Ranking:
        tiers, bar = self._tiers_and_bar()
        return Ranking(tuple(tuple(sorted(tier)) for tier in tiers), bar)

    def _tiers_and_bar(self) -> tuple[list[list[int]], int | None]:
        tiers: list[list[int]] = []
        bar: int | None = None
        if self._peek() == "|":
            self._take()
            bar = 0
        joins_tier = False
        while True:
            if joins_tier:
                tiers[-1].append(self._label())
            else:
                tiers.append([self._label()])
            separator = self._peek()
            if separator == "":
                return tiers, bar
            if separator not in ">=|":
                raise self._error(f"'{separator}' is not '>', '=' or '|'")
            self._take()
            joins_tier = separator == "="
            if separator == "|":
                if bar is not None:
                    self.at -= 1
                    raise self._error("a second bar '|'; a ranking has at most one")
                bar = len(tiers)
                if self._peek() == "":
                    return tiers, bar

    def _label(self) -> int:
        """A response number, with or without its A; spaces before it are skipped."""
        following = self._peek()
        start = self.at
        if following == "":
            raise self._error("the ranking ends where a response is expected" if self.seen else "the ranking is empty")
        if following == "A":
            self._take()
        while self.at < len(self.source) and self.source[self.at] in "0123456789":
            self.at += 1
        digits = self.source[start : self.at].lstrip("A")
        if not digits:
            self.at = start
            raise self._error(f"'{self.text[start]}' where a response such as A1 is expected")
        number = int(digits[:9])
        self.at, end = start, self.at
        if not 1 <= number <= self.responses:
            raise self._error(f"A{digits[:9]} does not exist")
        if number in self.seen:
            raise self._error(f"A{number} appears twice; each response has one place")
        self.seen.add(number)
        self.at = end
        return number

    def _peek(self) -> str:
        while self.at < len(self.source) and self.source[self.at].isspace():
            self.at += 1
        return self.source[self.at] if self.at < len(self.source) else ""

    def _take(self) -> None:
        self.at += 1

    def _error(self, found: str) -> BadInput:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        example = "A2>A1" if self.responses < 3 else "A2>A1=A3"
        return BadInput(
            f"ranking '{shown}', place {self.at + 1}: {found}; the responses are A1 to A{self.responses}. "
            f"Write for example {example}."
        )
