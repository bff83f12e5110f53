"""The command line: the real process where it matters."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import BadInput
from train import command_configs, configs, ppo_config
from train.__main__ import main
from train.configs import RmConfig
from train.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "train", *arguments], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )


def test_a_process_of_its_own_says_the_sentence_and_nothing_beside(tmp_path: Path) -> None:
    """No library has a word in it either, whatever the CPU."""
    data = tmp_path / "data.jsonl"
    data.write_text(GOOD)
    done = run("score", "--model", str(tmp_path / "none"), "--data", str(data), "--out", str(tmp_path / "out.jsonl"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --model ") and len(done.stderr.splitlines()) == 1


GOOD = '{"prompt": "Hi", "responses": ["a", "b"], "ranking": "A2>A1"}\n'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (GOOD + "{not json}\n", "data.jsonl:2: "),
        (
            GOOD + '{"prompt": "Hi", "responses": ["a", "b"], "ranking": "A1>A9"}\n',
            "data.jsonl:2: ranking 'A1>A9', place 4: A9",
        ),
        (
            '{"prompt": "Hi", "responses": ["a"], "ranking": "A1"}\n',
            "data.jsonl:1: 1 response; a ranking needs at least 2",
        ),
        (GOOD.encode() + b'{"prompt": "caf\xe9"}\n', "data.jsonl:2: byte 0xe9"),
        (GOOD.replace(', "ranking": "A2>A1"', ""), "no prompt with a ranking to learn from"),
    ],
    ids=["malformed", "unknown label", "one response", "not utf-8", "no ranking"],
)
def test_bad_data_gets_one_sentence_exit_2_and_leaves_no_run(
    content: str | bytes, sentence: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["rm", "--model", str(tiny), "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()[-1].startswith("error: ")
    assert errors.count("error: ") == 1
    assert sentence in errors
    assert not (tmp_path / "run").exists()


def test_a_missing_model_folder_gets_one_sentence_and_leaves_no_run(
    ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rm", "--model", "./missing", "--data", str(ranked), "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: --model ./missing: there is no such model folder")
    assert not (tmp_path / "run").exists()


def test_the_real_command_tells_a_mistake_in_one_line(ranked: Path, tmp_path: Path) -> None:
    done = run("rm", "--model", "m", "--data", str(ranked), "--output", str(tmp_path / "run"), "--lora_r", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --lora_r 0: must be 1 or more.\n"
    assert not (tmp_path / "run").exists()


def test_a_whole_run_prints_its_folder_and_keeps_the_log_on_standard_error(
    tiny: Path, ranked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = run("rm", "--model", str(tiny), "--data", str(ranked), "--output", str(out), "--max-steps", "2", "--bf16")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "step 2/2  loss" in done.stderr
    assert "Warning" not in done.stderr
    assert "step 2/2  loss" in (out / "log.txt").read_text()


def test_help_names_the_stages_and_every_flag_and_loads_no_torch() -> None:
    code = (
        "import sys; from train.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    for arguments, words in (([], ["rm", "score", "evaluate", "generate"]), (["rm"], list(RmConfig.__annotations__))):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--help"], cwd=ROOT, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words)


def test_the_web_process_gets_no_torch_through_jobs_or_runs() -> None:
    code = (
        "import sys, train, train.jobs, train.run, train.stages\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_stage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ppp"]) == 2
    assert capsys.readouterr().err.startswith("error: 'ppp' is no stage of train. It is one of sft, rm, dpo")
    assert main([]) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": 0.0}, "--learning_rate 0.0: must be more than 0"),
        ({"learning_rate": float("nan")}, "--learning_rate nan"),
        ({"lora_r": 0}, "--lora_r 0: must be 1 or more"),
        ({"max_steps": -1}, "--max_steps -1: must be 0 or more"),
        ({"eval_fraction": 1.0}, "--eval_fraction 1.0: a share"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0"),
    ],
)
def test_impossible_values_name_their_flag(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=sentence):
        RmConfig(**{"model": "m", "data": tmp_path, "output": tmp_path, **changes})


def test_every_setting_is_documented() -> None:
    trees = [ast.parse(inspect.getsource(module)) for module in (configs, ppo_config, command_configs)]
    classes = {node.name: node.body for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    for stage in STAGES.values():
        body = classes[stage.config.__name__]
        for node, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{stage.config.__name__}.{node.target.id}"  # type: ignore[union-attr]
