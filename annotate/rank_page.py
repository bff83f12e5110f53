"""The ranking page: one HTML board that fetches its data; no Gradio event, so no queue and no page state.

The template, style and script are fixed texts of ours. Gradio evaluates templates as code, so nothing a person or a
model wrote may ever be put into them; it comes later, as JSON, rendered and cleaned on the server.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from annotate.people import People
from annotate.render import code_styles
from data.store import Store

_BOARD = Path(__file__).parent / "board"
# One script, in this order: each file uses what the earlier ones define.
_SCRIPTS = ("strings.js", "notation.js", "ranking.js", "server.js", "panels.js", "drag.js", "drawing.js", "board.js")


def build(store: Store, workspace: Path, people: People) -> None:
    """Lay out the page inside the current Blocks."""
    gr.HTML(
        html_template=_text("board.html"),
        css_template=f"{_text('board.css')}\n{code_styles()}",
        js_on_load="\n".join(_text(name) for name in _SCRIPTS),
        apply_default_css=False,
        elem_id="ranking-board",
    )


def _text(name: str) -> str:
    return (_BOARD / name).read_text(encoding="utf-8")
