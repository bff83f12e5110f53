"""What the ranking page shows: the store's records as JSON, every untrusted text rendered to safe HTML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from annotate.render import render_markdown
from data.entities import HistoryEntry, Progress, Project, Task


def view(project: Project, progress: Progress, task: Task | None) -> dict[str, Any]:
    """One state of the page: the project, how far the annotator is, and the task (None = nothing left)."""
    return {
        "project": {"id": project.id, "name": project.name, "guidelines": _guidelines(project.guidelines)},
        "progress": {
            "total": progress.total,
            "ranked": progress.ranked,
            "skipped": progress.skipped,
            "flagged": progress.flagged,
            "left": progress.left,
        },
        "task": _task(task) if task else None,
    }


def history_view(entries: Iterable[HistoryEntry]) -> dict[str, Any]:
    """The annotator's earlier decisions, newest first; `text` is plain text."""
    return {
        "entries": [
            {
                "prompt": entry.prompt_id,
                "status": entry.status,
                "ranking": entry.ranking,
                "text": entry.text,
                "at": entry.at.isoformat(),
            }
            for entry in entries
        ]
    }


def _task(task: Task) -> dict[str, Any]:
    """Blind: no model name, no stored order, no other person's judgement."""
    return {
        "prompt": task.prompt_id,
        "revision": task.revision,
        "status": task.status,
        "messages": [{"role": m.role, "html": render_markdown(m.content)} for m in task.prompt],
        "cards": [render_markdown(text) for text in task.responses],
        "answer": task.answer,
        "draft": task.draft,
        "comment": task.comment,
    }


def _guidelines(text: str) -> str:
    return render_markdown(text) if text.strip() else ""
