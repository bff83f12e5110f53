"""The house itself: what may be loaded where, what the README promises, what the guides tell people to type."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data.entities import Submission
from data.store import Store
from tests.conftest import ROOT

ROOMS = ("annotate", "data", "train", "benchmarks")
GUIDES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
MAX_FUNCTION_LINES = 60


def sources() -> list[Path]:
    """Every Python file of the rooms, and the two at the top."""
    files = [ROOT / "app.py", ROOT / "dev.py", *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
    return [file for file in files if file.name != "__init__.py" and "versions" not in file.parts]


@pytest.mark.parametrize("module", ["app", "annotate.pages", "data.store", "data.__main__", "train.jobs", "train.run"])
def test_only_training_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["data.store", "train.jobs", "data.exporting"])
def test_only_the_pages_load_gradio(module: str) -> None:
    code = f"import sys, {module}; print('gradio' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_the_readme_has_a_line_for_every_file() -> None:
    tree = re.search(r"## The house\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert tree
    named = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.split()}
    missing = [str(file.relative_to(ROOT)) for file in sources() if file.name not in named]
    assert missing == []


def test_every_function_fits_a_screen() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name} {node.end_lineno - node.lineno + 1} lines"
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_public_function_says_what_it_means() -> None:
    silent = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in sources()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert silent == []


def commands(guide: Path) -> list[str]:
    """The `python -m …` lines of a guide's shell blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", guide.read_text(), re.S)
    return [line.split("   #")[0] for block in blocks for line in block.splitlines() if line.startswith("python -m")]


def test_links_between_guides_lead_somewhere() -> None:
    for guide in GUIDES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", guide.read_text()):
            assert (guide.parent / target).exists(), f"{guide.name} links to {target}"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, demo_workspace: Path) -> Path:
    """A folder in which a reader's commands work: the samples in place, and some of them ranked."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "data").symlink_to(ROOT / "data")
    from app import load_samples

    store = Store.open(folder / "var")
    (folder / "var" / "models").symlink_to(demo_workspace.resolve() / "models")
    load_samples(store)
    project = store.project("samples")
    person = store.ensure_annotator("reader")
    while task := store.next_task(project.id, person.id):
        ranking = ">".join(f"A{n}" for n in range(1, len(task.responses) + 1))
        store.submit(person.id, Submission(task.prompt_id, 0, f"reader-{task.prompt_id:04}", "ranked", ranking, 9.0))
    store.close()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_guides_run(workshop: Path) -> None:
    """As printed, but trainings and generations are cut short."""
    done: set[str] = set()
    for guide in GUIDES:
        for line in commands(guide):
            if line in done:
                continue
            done.add(line)
            if any(f" train {stage} " in line for stage in ("sft", "rm", "dpo")):
                line += " --max_steps 1 --per_device_train_batch_size 1 --max_length 64"
            if " train sft " in line:
                line += " --tokens_per_batch 256"
            if " train dpo " in line:
                line += " --health_max_new_tokens 2"
            if " train ppo " in line:
                line += " --max_steps 1 --per_device_train_batch_size 1 --max_new_tokens 4 --eval_prompts 1"
            if " train generate " in line:
                line = line.replace("--samples 4", "--samples 2") + " --max_new_tokens 4"
            if " --judge " in line:
                line = line.replace("--max_new_tokens 64", "--max_new_tokens 4") + " --prompts_limit 2"
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, *shlex.split(line)[1:]]
            ran = subprocess.run(command, cwd=workshop, env=environment, capture_output=True, text=True)
            assert ran.returncode == 0, f"{guide.name}: {line}\n{ran.stderr}"
    assert any(" train rm " in line for line in done)
