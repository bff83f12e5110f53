"""A pickle runs code when it is read. One is laid into every folder that is loaded from, and none goes off."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import BadInput
from tests.train.adapters import causal_adapter, reward_run
from train.models import load_causal, load_tokenizer, resolve, trainable_base
from train.rewards import load_reward_model

PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "model.ckpt", "tokenizer.pkl")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.crater),)


@pytest.fixture
def lay(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Lay bombs of some names into a folder. At the end none has gone off, and each would have."""
    crater, laid = tmp_path / "crater", []

    def into(folder: Path, *names: str) -> None:
        for name in names:
            torch.save(Bomb(crater), folder / name)
            laid.append(folder / name)

    yield into
    assert laid
    assert not crater.exists()
    for path in laid:
        with path.open("rb") as file:  # by name torch would take some for safetensors
            torch.load(file, weights_only=False)
        crater.rmdir()


def load_language_model(name: Path, workspace: Path) -> None:
    source = resolve(str(name), workspace=workspace)
    load_tokenizer(source)
    load_causal(source, dtype=torch.float32)


def load_rewards(name: Path, workspace: Path) -> None:
    source = resolve(str(name), workspace=workspace)
    load_tokenizer(source)
    load_reward_model(source, dtype=torch.float32)


def test_bombs_beside_safetensors_are_not_read(lay: Callable[..., None], tiny: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    language, rewards = causal_adapter(base, tmp_path / "sft"), reward_run(base, tmp_path / "run")
    for folder in (base, language, rewards, rewards / "adapter"):
        lay(folder, *PICKLES)
    load_language_model(base, tmp_path)
    load_language_model(language, tmp_path)
    load_rewards(rewards, tmp_path)
    merged = trainable_base(resolve(str(language), workspace=tmp_path), tmp_path)
    assert {p.suffix for p in Path(merged.base).iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_a_base_of_bombs_alone_is_refused(name: str, lay: Callable[..., None], tiny: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    lay(base, name)
    with pytest.raises(BadInput, match=f"found only {name}, a format that can run code when it is read"):
        load_language_model(base, tmp_path)


@pytest.mark.parametrize("kind", [causal_adapter, reward_run])
def test_an_adapter_of_a_bomb_alone_is_refused(
    kind: Callable[..., Path], lay: Callable[..., None], tiny: Path, tmp_path: Path
) -> None:
    made = kind(tiny, tmp_path / "made")
    folder = made / "adapter" if (made / "adapter").exists() else made
    (folder / "adapter_model.safetensors").unlink()
    lay(folder, "adapter_model.bin")
    with pytest.raises(BadInput, match=r"no adapter_model\.safetensors|has no adapter"):
        load_language_model(made, tmp_path)


def test_a_bomb_that_goes_by_the_name_of_safetensors_is_refused(
    lay: Callable[..., None], tiny: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    lay(base, "model.safetensors")
    with pytest.raises(BadInput, match="its weights cannot be loaded"):
        load_language_model(base, tmp_path)
    adapter = causal_adapter(tiny, tmp_path / "sft")
    lay(adapter, "adapter_model.safetensors")
    with pytest.raises(BadInput, match="its adapter does not fit"):
        load_language_model(adapter, tmp_path)


def test_a_bomb_that_an_index_of_safetensors_points_to_does_not_go_off(
    lay: Callable[..., None], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    names = load_file(base / "model.safetensors").keys()
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    lay(base, "model-00002-of-00002.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00002-of-00002.bin")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"names model-00002-of-00002\.bin, and weights must be safetensors"):
        load_language_model(base, tmp_path)
    monkeypatch.setattr("train.models.check_folder", lambda path: None)  # as of a model on the hub
    with pytest.raises(BadInput, match="its weights can run code when they are read"):
        load_language_model(base, tmp_path)
