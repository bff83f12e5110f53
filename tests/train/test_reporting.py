"""Metrics in TensorBoard's files, and the sentence where a library is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, Trainer, TrainingArguments

from data.errors import BadInput
from train import reporting


def trainer(run: Path, steps: int) -> Trainer:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.num_labels, config.pad_token_id = 1, 0
    rows = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor(1.0)}] * 8
    options = reporting.settings("tensorboard", run)
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=steps,
        logging_steps=1,
        save_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    callbacks = reporting.callbacks("tensorboard", run)
    return Trainer(LlamaForSequenceClassification(config), arguments, train_dataset=rows, callbacks=callbacks)


def written(run: Path) -> dict[str, list[int]]:
    """Steps of each number in the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: sorted({event.step for event in events.Scalars(tag)}) for tag in events.Tags()["scalars"]}


def test_tensorboard_files_lie_in_the_run_those_of_a_resumed_run_and_of_a_last_evaluation_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trainer(tmp_path, steps=2)
    first.train()
    assert written(tmp_path)["train/loss"] == [1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {"tensorboard", "checkpoint-2"}
    second = trainer(tmp_path, steps=3)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    second.log({"eval_accuracy": 0.5})
    for file in (tmp_path / "tensorboard").iterdir():
        assert file.name.startswith("events.out.tfevents")
    found = written(tmp_path)
    assert (found["train/loss"], found["eval/accuracy"]) == ([1, 2, 3], [3])
    assert "runs" not in {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_told_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(reporting, "version", missing)
    with pytest.raises(BadInput, match=rf"^--report_to {name}: {name} is not installed\. Install it with `pip install"):
        reporting.check(name)
    reporting.check("none")


def test_a_library_that_is_there_is_taken(tmp_path: Path) -> None:
    reporting.check("tensorboard")
    assert reporting.settings("none", tmp_path) == {"report_to": "none"}
    assert reporting.callbacks("none", tmp_path) == reporting.callbacks("wandb", tmp_path) == []
    named = {"report_to": "trackio", "run_name": tmp_path.name, "project": "rankwise"}
    assert reporting.settings("trackio", tmp_path) == named
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **named)
    assert (arguments.report_to, arguments.run_name, arguments.project) == (["trackio"], tmp_path.name, "rankwise")
