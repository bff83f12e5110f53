"""What the store hands out: small frozen records that hold no connection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from data.records import Message


@dataclass(frozen=True)
class Project:
    """A set of prompts with its guidelines (Markdown)."""

    id: int
    name: str
    guidelines: str


@dataclass(frozen=True)
class Annotator:
    """A person who ranks, or the name an imported ranking came under."""

    id: int
    name: str


@dataclass(frozen=True)
class Task:
    """One prompt as one annotator sees it: blind (no model names) and in this annotator's own order.

    `responses`: texts in shown order; label A1 is `responses[0]`.
    `revision`: this annotator's latest revision of this prompt, 0 = none yet; a submit names it.
    `status`: open, ranked, skipped or flagged.
    `answer`: the stored ranking of a prompt that is reopened, "" where there is none.
    `draft`: notation in shown labels; unfinished work, or the current ranking of a prompt that is reopened.
    """

    project_id: int
    prompt_id: int
    external_id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    revision: int
    status: str
    answer: str
    draft: str
    comment: str


@dataclass(frozen=True)
class Submission:
    """What the annotator says of a task.

    `revision`: the one the task showed. `key`: made by the client once per attempt, so that a repeated request is
    answered with the stored receipt. `status`: ranked, skipped or flagged. `ranking`: notation in shown labels.
    """

    prompt_id: int
    revision: int
    key: str
    status: str
    ranking: str = ""
    seconds: float | None = None
    comment: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Receipt:
    """A decision that is on disk. `replayed`: it was there already, this request only repeated it."""

    ranking_id: int
    prompt_id: int
    revision: int
    status: str
    ranking: str
    replayed: bool


@dataclass(frozen=True)
class Progress:
    """How far one annotator is in one project; all in prompts."""

    total: int
    ranked: int
    skipped: int
    flagged: int

    @property
    def left(self) -> int:
        return self.total - self.ranked - self.skipped - self.flagged


@dataclass(frozen=True)
class HistoryEntry:
    """One earlier decision of the annotator; `ranking` in shown labels, `text` the start of the user's last turn."""

    prompt_id: int
    revision: int
    status: str
    ranking: str
    text: str
    at: datetime


@dataclass(frozen=True)
class Added:
    """What an import changed, and what was there already."""

    prompts: int
    already_there: int
    rankings: int
    rankings_already_there: int


@dataclass(frozen=True)
class Counts:
    """The size of a project. `rankings`, `skipped` and `flagged` count current decisions, not revisions."""

    prompts: int
    responses: int
    ranked_prompts: int
    rankings: int
    skipped: int
    flagged: int
    annotators: int
