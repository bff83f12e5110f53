"""The command line: `python -m data`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.__main__ import main
from data.store import Store
from tests.conftest import ROOT
from tests.data.test_importing import dump

GOOD = {"id": "good", "prompt": "Why?", "responses": ["Because.", "No idea."], "ranking": "A1>A2", "annotator": "lin"}
GOOD_LINE = json.dumps(GOOD)
TABLE = "prompt,response_1,response_2,ranking\nWhy?,Because.,No idea.,A1>A2\n"
TREE_START = '{"message_tree_id": "t", "prompt": '


def row(**changes: Any) -> str:
    return json.dumps({"prompt": "q", "responses": ["a", "b"], **changes})


def after_good(line: str) -> bytes:
    """A good row, a blank line, then `line` as line 3."""
    return f"{GOOD_LINE}\n\n{line}\n{GOOD_LINE}".encode()


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "malformed json": ("f.jsonl", after_good('{"prompt": "q", responses}'), ":3: column 17: "),
    "cut line": ("f.jsonl", after_good('{"prompt": "q", "respo'), ":3: the line ends inside a JSON value"),
    "not an object": ("f.jsonl", after_good("[1, 2]"), ":3: found a list"),
    "unknown label": ("f.jsonl", after_good(row(ranking="A1>A9")), ":3: ranking 'A1>A9', place 4: A9 does not exist"),
    "ranking of a wrong kind": ("f.jsonl", after_good(row(rankings=[{"ranking": ["A1"]}])), ":3: ranking 1: "),
    "one response": ("f.jsonl", after_good(row(responses=["a"])), ":3: 1 response; a ranking needs at least 2"),
    "too many responses": ("f.jsonl", after_good(row(responses=["a"] * 1000)), ":3: 1000 responses; at most 50"),
    "no responses": ("f.jsonl", after_good('{"prompt": "q"}'), ":3: no 'responses'"),
    "empty prompt": ("f.jsonl", after_good(row(prompt=" ")), ":3: message 1: the user's turn is empty"),
    "prompt ends with the assistant": (
        "f.jsonl",
        after_good(row(prompt=[{"role": "assistant", "content": "x"}])),
        ":3: the prompt ends with a turn of 'assistant'",
    ),
    "NaN": ("f.jsonl", after_good(row(metadata={"a": float("nan")})), ":3: NaN is no JSON number"),
    "Infinity": ("f.jsonl", after_good(row(seconds=float("-inf"))), ":3: -Infinity is no JSON number"),
    "a number too large": ("f.jsonl", after_good(row(metadata={"a": 1}).replace("1", "1e999")), ":3: the metadata"),
    "endless digits": ("f.jsonl", after_good(row(metadata={"a": 1}).replace("1", "9" * 5000)), ":3: a number that"),
    "NUL": ("f.jsonl", after_good(row(prompt="a\0b")), ":3: message 1: the message holds a NUL"),
    "NUL in metadata": ("f.jsonl", after_good(row(metadata={"a": ["\0"]})), ":3: the metadata holds a NUL"),
    "half a surrogate pair": ("f.jsonl", after_good(row(responses=["a", "\ud800"])), ":3: response 2: the text holds"),
    "surrogate in metadata": ("f.jsonl", after_good(row(topic="\udfff")), ":3: the metadata holds half of a surrogate"),
    "key twice": ("f.jsonl", after_good('{"prompt": "a", "prompt": "b"}'), ":3: the key 'prompt' stands twice"),
    "nested too deep to read": ("f.jsonl", after_good("[" * 100_000), ":3: JSON nested too deeply"),
    "id twice": ("f.jsonl", after_good(GOOD_LINE), ":3: id 'good' also stands at "),
    "id of other content": ("f.jsonl", after_good(row(id="good")), ":3: id 'good' also stands at "),
    "text of a million characters": (
        "f.jsonl",
        after_good(row(prompt="x" * 1_000_001)),
        ":3: message 1: the message has",
    ),
    "latin-1": ("f.jsonl", after_good("") + '{"prompt": "é"}'.encode("latin-1"), "byte 0xe9 at offset "),
    "surrogate in UTF-8 bytes": ("f.jsonl", after_good("").replace(b"\n\n", b"\n\xed\xa0\x80\n"), ":2: byte 0xed"),
    "UTF-16": ("f.jsonl", GOOD_LINE.encode("utf-16"), ": this is UTF-16 text"),
    "UTF-16 without a mark": ("f.jsonl", GOOD_LINE.encode("utf-16-le"), ": this is UTF-16 text"),
    "UTF-32": ("f.jsonl", GOOD_LINE.encode("utf-32"), ": this is UTF-32 text"),
    "gzip": ("f.jsonl.gz", b"\x1f\x8b\x08\0abc", ": this is gzip data"),
    "a spreadsheet": ("f.xlsx", b"PK\x03\x04abc", ": this is a zip archive or a spreadsheet"),
    "empty": ("f.jsonl", b"", ": the file is empty"),
    "blank": ("f.jsonl", b"\n \n", ": the file is empty"),
    "only a mark": ("f.csv", b"\xef\xbb\xbf", ": the file is empty"),
    "a JSON list": ("f.json", f"[{GOOD_LINE}]".encode(), ":1: one JSON list"),
    "indented JSON": ("f.json", json.dumps(GOOD, indent=1).encode(), ":1: the line ends inside a JSON value"),
    "pairs": (
        "f.jsonl",
        b'{"prompt": "q", "chosen": "a", "rejected": "b"}',
        ":1: the keys are chosen, prompt, rejected",
    ),
    "prompts alone": ("f.jsonl", b'{"prompt": "q", "id_": 1}', "prompts without responses cannot be ranked"),
    "plain text": ("f.txt", "你好\n".encode(), ":1: the file starts with '你好'"),
    "csv without responses": ("f.csv", b"prompt,answer\nq,a\n", ":1: the columns are prompt, answer"),
    "csv with a terminal code": ("f.csv", b"prompt,\x1b[2Jx\n", ":1: the columns are prompt, \\x1b[2Jx"),
    "csv with a gap in the header": ("f.csv", b"prompt,response_1,response_3\n", ":1: no column response_2"),
    "csv with a column twice": ("f.csv", b"prompt,response_1,Prompt\n", ":1: two columns are named 'prompt'"),
    "csv header alone": ("f.csv", b"prompt,response_1,response_2\n", ": no rows"),
    "csv one response": ("f.csv", f"{TABLE}q,a,,\n".encode(), ":3: 1 response"),
    "csv gap": ("f.csv", f"{TABLE}q,,b,\n".encode(), ":3: response_1 is empty"),
    "csv bad ranking": ("f.csv", f'{TABLE}"two\nlines",a,b,A1>A1\n"'.encode(), ":3: ranking 'A1>A1'"),
    "csv too many cells": ("f.csv", f"{TABLE}q, and so on,a,b,A1>A2\n".encode(), ":3: 5 cells under 4 columns"),
    "csv open quote": ("f.csv", f'{TABLE}"q,a,b,A1>A2\nq,a,b,\n'.encode(), ":3: a cell opens with a double quote"),
    "csv text after a quote": ("f.csv", f'{TABLE}"q"x,a,b,\n'.encode(), ":3: a closing double quote"),
    "csv NUL": ("f.csv", f"{TABLE}q\0,a,b,\n".encode(), ":3: message 1: the message holds a NUL"),
    "csv without a prompt": ("f.csv", f"{TABLE},a,b,\n".encode(), ":3: message 1: the user's turn is empty"),
    "csv with old Mac line ends": (
        "f.csv",
        TABLE.replace("\n", "\r").encode(),
        ":1: lines end in a lone carriage return",
    ),
    "a tree that is none": ("f.jsonl", f"{TREE_START}1}}".encode(), ":1: no tree"),
    "tree with a strange role": ("f.jsonl", f'{TREE_START}{{"text": "x", "role": "x"}}}}'.encode(), "has role 'x'"),
    "tree with replies of a wrong kind": (
        "f.jsonl",
        f'{TREE_START}{{"text": "x", "role": "prompter", "replies": 1}}}}'.encode(),
        ":1: 'replies' must be a list",
    ),
    "tree with a rank in words": (
        "f.jsonl",
        (
            f'{TREE_START}{{"text": "x", "role": "prompter", "message_id": "m", "replies": ['
            '{"text": "a", "role": "assistant", "rank": "best"}, {"text": "b", "role": "assistant", "rank": 1}]}}'
        ).encode(),
        ":1: message m: a reply's 'rank' is 'best'",
    ),
    "single messages": ("f.jsonl", b'{"message_id": 1, "parent_id": 2, "role": "x"}', "single Open-Assistant messages"),
}
deep = row(metadata={"a": 1}).replace('"a": 1', '"a": ' + "[" * 120 + "]" * 120)
BAD_FILES["nested a little too deep"] = ("f.jsonl", after_good(deep), ":3: JSON nested more than 100 levels")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one project."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "seed.csv").write_text(TABLE)
    assert main(["import", str(folder / "seed.csv"), "--project", "demo", "--workspace", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def store(workspace: Path) -> Iterator[Store]:
    store = Store.open(workspace)
    yield store
    store.close()


@pytest.mark.parametrize(("name", "content", "found"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_gets_one_sentence_and_changes_nothing(
    workspace: Path,
    store: Store,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    found: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    before = dump(store)
    status = main(["import", str(path), "--project", "demo", "--workspace", str(workspace)])
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {path}:")
    assert found in err
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    assert dump(store) == before


@pytest.mark.parametrize("name", ["", "missing.jsonl", "x" * 400, "a\nb.jsonl"])
def test_a_path_that_is_no_file_gets_one_sentence(
    workspace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["import", str(tmp_path / name), "--project", "demo", "--workspace", str(workspace)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_from_a_file_to_a_dataset_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = ["--workspace", str(tmp_path / "var")]
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD_LINE)
    assert main(["import", str(path), "--project", "demo", *place, "--dry-run", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["dry_run"], report["new_prompts"], report["annotators"]) == (True, 1, {"lin": 1})

    assert main(["import", str(path), "--project", "demo", *place]) == 0
    assert capfd.readouterr().out.startswith("Added 1 prompt and 1 ranking to 'demo'.\n")

    out = tmp_path / "out"
    export = ["export", "--project", "demo", "--format", "trl", "--out", str(out), *place]
    assert main(export) == 0
    assert capfd.readouterr().out.startswith(f"Exported 1 pairs of 1 rankings to {out}.\n")
    assert main([*export, "--eval-fraction", "0.5", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads((out / "manifest.json").read_text())
    assert (out / "trl" / "eval.jsonl").exists()

    assert main(["projects", *place]) == 0
    assert capfd.readouterr().out == "demo: 1 prompts, 1 ranked, 1 rankings\n"
    assert main(["projects", *place, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["rankings"] == 1


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--project", "nobody", "--format", "trl"], "project 'nobody' does not exist. The projects are: demo."),
        (["--project", "demo", "--format", "xml"], "--format xml"),
        (["--project", "demo", "--format", "trl", "--aggregate", "vote"], "--aggregate vote"),
        (["--project", "demo", "--format", "trl", "--eval-fraction", "2"], "--eval-fraction 2.0"),
    ],
)
def test_an_export_that_cannot_be_gets_one_sentence(
    workspace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], found: str
) -> None:
    assert main(["export", *arguments, "--out", str(tmp_path / "out"), "--workspace", str(workspace)]) == 2
    err = capfd.readouterr().err
    assert found in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "data", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_itself_ends_with_the_right_status(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    place = ["--workspace", str(tmp_path / "var")]
    refused = run("import", str(bad), "--project", "demo", *place)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    bad.write_text(json.dumps({**GOOD, "prompt": "🍎"}, ensure_ascii=False))
    done = run("import", str(bad), "--project", "🍎", *place, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("arguments", "status"), [(["import", "--help"], 0), (["import"], 2), ([], 2)])
def test_help_ends_well_and_missing_arguments_do_not(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data", "projects", "--json", "--workspace", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_the_database_address_comes_from_the_environment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'else.db'}")
    assert main(["projects", "--json", "--workspace", str(tmp_path / "var")]) == 0
    assert json.loads(capfd.readouterr().out) == []
    assert (tmp_path / "else.db").exists()
    assert not (tmp_path / "var").exists()
    monkeypatch.setenv("DATABASE_URL", "mysql://x/y")
    assert main(["projects"]) == 2
    assert capfd.readouterr().err.startswith("error: DATABASE_URL")
