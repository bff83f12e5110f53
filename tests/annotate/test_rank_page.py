"""The board's fixed texts, which Gradio evaluates as templates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BOARD = Path(__file__).resolve().parents[2] / "annotate" / "board"


@pytest.mark.parametrize("name", ["board.html", "board.css"])
def test_a_template_holds_nothing_that_gradio_would_evaluate(name: str) -> None:
    assert not re.search(r"[`\\]|\$\{|\{\{", (BOARD / name).read_text(encoding="utf-8"))


def test_every_text_of_the_template_exists() -> None:
    names = re.findall(r'data-(?:text|label)="(\w+)"', (BOARD / "board.html").read_text(encoding="utf-8"))
    english = (BOARD / "strings.js").read_text(encoding="utf-8").split("zh: {")[0]
    assert [name for name in names if not re.search(rf"\b{name}: '", english)] == []


def test_the_scripts_load_nothing_and_evaluate_nothing() -> None:
    for script in BOARD.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"\beval\(|new Function|https?://|document\.write|insertAdjacentHTML", text), script
        assert text.count("innerHTML") == (1 if script.name == "panels.js" else 0), script
