"""What an import found, and what it changes: for people as text, for programs as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

_ANNOTATORS_SHOWN = 10


@dataclass(frozen=True)
class ImportReport:
    """One import, done or rehearsed. The counts speak of the files; `new_*` and `*_already_there` of the project."""

    files: tuple[str, ...]
    formats: tuple[str, ...]
    prompts: int
    responses: int
    responses_per_prompt: Mapping[int, int]
    """How many prompts have K responses, by K."""
    without_ranking: int
    """Prompts that no annotator ranked: they wait on the ranking page."""
    rankings: int
    rankings_with_ties: int
    rankings_partial: int
    """Rankings that leave a response unranked."""
    annotators: Mapping[str, int]
    """Rankings by annotator, the busiest first."""
    skipped: int
    flagged: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What the files hold and the import does not take, with its number."""
    project: str | None = None
    """None: the file was inspected without looking at a project, and the four counts below are None too."""
    dry_run: bool = False
    new_prompts: int | None = None
    prompts_already_there: int | None = None
    new_rankings: int | None = None
    rankings_already_there: int | None = None

    def against(self, prompts_already_there: int, rankings_already_there: int) -> ImportReport:
        """The same report, held against a project."""
        return replace(
            self,
            new_prompts=self.prompts - prompts_already_there,
            prompts_already_there=prompts_already_there,
            new_rankings=self.rankings - rankings_already_there,
            rankings_already_there=rankings_already_there,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists, in the order of the fields."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([self._headline(), *(f"  {name:<12}{text}" for name, text in self._details())])

    def _headline(self) -> str:
        if self.project is None:
            return f"{', '.join(self.files)}: {_number(self.prompts, 'prompt')}."
        if not self.new_prompts and not self.new_rankings:
            return f"Nothing to add to '{self.project}': everything in {', '.join(self.files)} is there already."
        verb = "Would add" if self.dry_run else "Added"
        what = f"{_number(self.new_prompts or 0, 'prompt')} and {_number(self.new_rankings or 0, 'ranking')}"
        return f"{verb} {what} to '{self.project}'."

    def _details(self) -> list[tuple[str, str]]:
        per_prompt = ", ".join(f"{prompts:,} with {k}" for k, prompts in self.responses_per_prompt.items())
        lines = [
            ("files", f"{', '.join(self.files)} ({', '.join(self.formats)})"),
            ("prompts", f"{self.prompts:,}" + self._there(self.prompts_already_there)),
            ("responses", f"{self.responses:,} (prompts by number of responses: {per_prompt})"),
            ("rankings", f"{self.rankings:,}" + self._there(self.rankings_already_there) + self._ranking_kinds()),
            ("to rank", f"{_number(self.without_ranking, 'prompt')} without a ranking"),
        ]
        if self.annotators:
            lines.append(("annotators", self._annotators()))
        if self.skipped or self.flagged:
            lines.append(("set aside", f"{self.skipped:,} skipped, {self.flagged:,} flagged"))
        return lines + [("left out", f"{count:,} {what}") for what, count in self.left_out.items()]

    @staticmethod
    def _there(already: int | None) -> str:
        return f", {already:,} of them there already" if already else ""

    def _ranking_kinds(self) -> str:
        kinds = [(self.rankings_with_ties, "with ties"), (self.rankings_partial, "that leave a response unranked")]
        return "".join(f", {count:,} {what}" for count, what in kinds if count)

    def _annotators(self) -> str:
        shown = [f"{name} ({count:,})" for name, count in list(self.annotators.items())[:_ANNOTATORS_SHOWN]]
        rest = len(self.annotators) - len(shown)
        return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
