"""`python -m train inspect`: the command itself, on files made without a model."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadInput, NotFound
from tests.conftest import ROOT
from tests.train.made_rollouts import KL_COEF, QUESTIONS, add_rollouts, columns, metadata
from train.command_configs import InspectConfig
from train.inspect_rollouts import drawn, main
from train.rollout_files import file_of, read_rollouts, write_rollouts

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of ppo with two steps."""
    path = tmp_path / "ppo-1"
    path.mkdir()
    status = {"stage": "ppo", "state": "done", "pid": 1, "process_started": 0.0}
    (path / "status.json").write_text(json.dumps(status))
    for step in (1, 3):
        add_rollouts(path, step)
    return path


def shown(run: Path, **flags: Any) -> str:
    return main(InspectConfig(str(run), **flags))


def changed(run: Path, **columns_: Any) -> Path:
    """Step 1 anew, its first response's columns replaced."""
    made = columns(seed=1)
    count = made["response"].count(0)
    for name, value in columns_.items():
        made[name][:count] = [value] * count if name != "text" else [value, *made["text"][1:count]]
    write_rollouts(file_of(run, 1), made, metadata=metadata())
    return run


def test_the_command_prints_a_plain_table_without_loading_torch(run: Path) -> None:
    code = (
        "import sys; from train.__main__ import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "inspect", str(run), "--step", "1", "--response", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert (ran.returncode, ran.stderr.strip()) == (0, "False")
    assert "\x1b" not in ran.stdout
    assert "step 1, response 2 (of 0 to 7)" in ran.stdout
    assert ran.stdout.rstrip("\n") == shown(run, step=1, response=2)


def test_each_token_has_a_row_with_the_numbers_of_the_file(run: Path) -> None:
    text = shown(run, step=1)
    tokens = read_rollouts(file_of(run, 1)).tokens(0)
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith(" #") or line.startswith("#"))
    assert lines[head].split() == [
        "#", "token", "log-prob", "reference", "KL", "reward", "value", "return", "advantage", "ratio", "learned",
    ]  # fmt: skip
    rows = lines[head + 1 :]
    assert len(rows) == len(tokens)
    last = tokens[-1]
    for name, form in (
        ("log_prob", ".3f"), ("reference_log_prob", ".3f"), ("kl", "+.3f"), ("reward", "+.3f"), ("value", ".3f"),
        ("return", ".3f"), ("advantage", "+.3f"), ("ratio", ".3f"),
    ):  # fmt: skip
        assert f"{last[name]:{form}}" in rows[-1].split(), name
    assert "'<|im_end|>'" in rows[-1]


def test_the_response_as_a_whole_is_told_first(run: Path) -> None:
    text = shown(run, step=1, response=1)
    tokens = read_rollouts(file_of(run, 1)).tokens(1)
    assert (
        f"reward {tokens[0]['score']:+.3f}, gold {tokens[0]['gold']:+.3f}, {len(tokens)} tokens, ended by EOS" in text
    )
    assert f"KL {sum(t['kl'] for t in tokens):+.3f} nats, taken off at {KL_COEF} a nat" in text
    assert f"user: {QUESTIONS[0]}" in text
    assert "cut off" in shown(run, step=1, response=2)


def test_without_a_step_the_last_one_is_shown(run: Path) -> None:
    assert ", step 3, response 0 (of" in shown(run)


def test_a_run_without_critic_has_no_column_for_values(run: Path) -> None:
    add_rollouts(run, 5, critic=False, gold=False)
    text = shown(run, step=5)
    assert "advantage" in text and "value" not in text and "return" not in text and "gold" not in text


def test_a_terminal_gets_colours_and_the_same_words(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rollouts = read_rollouts(file_of(run, 1))
    plain, colored = (drawn(rollouts, 0, run=run, terminal=terminal) for terminal in (False, True))
    assert "\x1b" not in plain
    assert {"\x1b[34m", "\x1b[31m", "\x1b[1;34m", "\x1b[1;31m"} <= set(_ESCAPES.findall(colored))
    assert [line.rstrip() for line in _ESCAPES.sub("", colored).splitlines()] == plain.splitlines()


def test_nothing_that_a_model_wrote_steers_the_terminal(run: Path) -> None:
    changed(run, text="\x1b]0;title\x07\x1b[2J[bold]x[/bold]\u202e\n")
    for terminal in (False, True):
        text = _ESCAPES.sub("", drawn(read_rollouts(file_of(run, 1)), 0, run=run, terminal=terminal))
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
        assert "\\x1b]0;title\\x07" in text
        assert "[bold]x[/bold]" in text


def test_tokens_of_no_text_and_long_ones_keep_their_place(run: Path) -> None:
    assert "(part)" in shown(changed(run, text=""), step=1)
    assert f"'{'x' * 23}…'" in shown(changed(run, text="x" * 400), step=1)


def test_tokens_that_were_not_learned_from_say_so(run: Path) -> None:
    changed(run, mask=False)
    assert shown(run, step=1).splitlines()[-1].endswith("no")
    assert shown(run, step=1, response=1).splitlines()[-2].endswith("yes")


def test_json_holds_everything_at_full_precision(run: Path) -> None:
    found = json.loads(shown(run, step=1, response=3, json=True))
    tokens = read_rollouts(file_of(run, 1)).tokens(3)
    assert {k: found[k] for k in ("step", "kl_coef", "response", "responses", "prompt_id", "finished")} == {
        "step": 1, "kl_coef": KL_COEF, "response": 3, "responses": 8, "prompt_id": "p1", "finished": True,
    }  # fmt: skip
    assert found["prompt"] == [{"role": "user", "content": QUESTIONS[1]}]
    assert [t["advantage"] for t in found["tokens"]] == [t["advantage"] for t in tokens]
    assert set(found["tokens"][0]) == {
        "text", "token_id", "log_prob", "reference_log_prob", "kl", "reward", "value", "return", "advantage", "ratio",
        "mask",
    }  # fmt: skip
    without = json.loads(shown(changed(run, value=None, log_prob=math.inf), step=1, json=True))
    assert (without["tokens"][0]["value"], without["tokens"][0]["log_prob"]) == (None, None)


@pytest.mark.parametrize(
    ("flags", "kind", "words"),
    [
        ({"step": 2}, NotFound, "--step 2: not among the 2 steps of .* that were kept, 1 to 3. The nearest is 1"),
        ({"step": 9}, NotFound, "The nearest is 3"),
        ({"response": 8}, BadInput, "--response 8: step 3 has 8 responses, 0 to 7"),
    ],
)
def test_a_step_or_response_that_is_not_there_is_told_in_a_sentence(
    run: Path, flags: dict[str, int], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        shown(run, **flags)


def test_a_folder_that_holds_no_rollouts_says_what_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run here"):
        shown(tmp_path)
    (run / "status.json").write_text('{"stage": "dpo", "state": "done", "pid": 1, "process_started": 0}')
    with pytest.raises(BadInput, match="a run of dpo, and only ppo keeps rollouts"):
        shown(run)
    (run / "status.json").write_text('{"stage": "ppo", "state": "running", "pid": 1, "process_started": 0}')
    for file in (run / "rollouts").iterdir():
        file.unlink()
    with pytest.raises(NotFound, match=r"no rollouts yet\. They come with the first step, unless"):
        shown(run)
