"""A base in 4 bits: what is quantised, that it learns, comes back the same, and what is told where it cannot work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from data.errors import BadInput
from data.records import read_record
from tests.train.adapters import causal_adapter, stir
from tests.train.made import byte_tokenizer, llama_config, rows, save_model
from train import four_bit
from train.__main__ import main
from train.groups import Group, encode_records
from train.layouts import PaddedRows, collate, scores
from train.losses import RewardLoss
from train.models import load_causal, load_tokenizer, resolve
from train.policies import new_policy
from train.products import FrozenLinear
from train.rewards import load_reward_model, new_reward_model
from train.run import Run

LAYOUT = PaddedRows(1_000_000)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-style, a multiple of 64 wide: a block of 4-bit weights holds 64."""
    config = llama_config(hidden_size=64, intermediate_size=128, initializer_range=0.1)
    return save_model(config, byte_tokenizer(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2-style: its turned weights become plain 4-bit layers."""
    config = GPT2Config(vocab_size=257, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0)
    tokenizer = byte_tokenizer(special=["<|end|>"], template=None)
    return save_model(config, tokenizer, tmp_path_factory.mktemp("gpt2"))


def made(folder: Path, *, dtype: torch.dtype = torch.float32, **options: bool):
    source = resolve(str(folder), workspace=folder)
    torch.manual_seed(1)
    model = new_reward_model(source, lora_r=4, lora_alpha=8, dtype=dtype, load_in_4bit=True, **options)
    return model, groups_of(folder)


def groups_of(folder: Path) -> list[Group]:
    records = [read_record(row, where="here") for row in rows(9)]
    return encode_records(records, load_tokenizer(resolve(str(folder), workspace=folder)), max_length=200)[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_linear_layers_are_quantised_and_the_head_norms_and_embeddings_are_not(
    family: str, request: pytest.FixtureRequest
) -> None:
    model, _ = made(request.getfixturevalue(family), dtype=torch.bfloat16)
    kinds: dict[torch.dtype, list[str]] = {}
    for name, p in model.named_parameters():
        kinds.setdefault(p.dtype, []).append(name)
    assert set(kinds) == {torch.uint8, torch.bfloat16, torch.float32}
    assert len(kinds[torch.uint8]) == {"llama": 14, "gpt2": 8}[family]
    assert not [n for n in kinds[torch.uint8] if "score" in n or "lora" in n]
    assert all("lora_" in n or "score" in n for n in kinds[torch.float32])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained <= set(kinds[torch.float32])
    assert any("score" in n for n in trained)
    assert any(("norm" in n or "ln_" in n) for n in kinds[torch.bfloat16])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_learns_and_a_saved_run_gives_the_same_scores_on_the_same_4_bits(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    model, groups = made(base, gradient_checkpointing=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batch, losses = collate(LAYOUT, groups), []
    for _ in range(6):
        loss = RewardLoss()(scores(model.train(), batch), batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[2] < losses[0]
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        expected = scores(model.eval(), batch)
    run = tmp_path / "run"
    Run.create(run, stage="rm", config={"model": str(base), "load_in_4bit": True}).finish("done")
    model.save_pretrained(run / "adapter")
    loaded = load_reward_model(resolve(str(run), workspace=tmp_path), dtype=torch.float32)
    with torch.no_grad():
        found = scores(loaded, batch)
    assert any(p.dtype == torch.uint8 for p in loaded.parameters())
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    (run / "config.json").write_text('{"stage": "rm", "model": ' + f'"{base}"' + "}")
    whole = load_reward_model(resolve(str(run), workspace=tmp_path), dtype=torch.float32)
    with torch.no_grad():
        assert (scores(whole, batch) - expected).abs().max() > 1e-4  # so the 4 bits were the same above


def test_a_run_in_4_bits_from_the_command_line(llama: Path, ranked: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.jsonl"
    flags = ["--load_in_4bit", "--gradient_checkpointing", "--report_to", "tensorboard", "--max_steps", "2"]
    assert main(["rm", "--model", str(llama), "--data", str(ranked), "--output", str(run), *flags]) == 0
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert resolve(str(run), workspace=tmp_path).load_in_4bit
    assert main(["score", "--model", str(run), "--data", str(ranked), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 24


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient_on_a_4_bit_base(
    family: str, request: pytest.FixtureRequest
) -> None:
    found = []
    for checkpointing in (False, True):
        model, groups = made(request.getfixturevalue(family), gradient_checkpointing=checkpointing)
        torch.manual_seed(2)
        stir(model)
        scores(model.train(), collate(LAYOUT, groups)).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_evaluation_changes_no_gradient(family: str, request: pytest.FixtureRequest) -> None:
    """On some CPUs the library packs weights in evaluation, and trains on as if they were constants."""
    model, groups = made(request.getfixturevalue(family))
    stir(model)
    batch, found = collate(LAYOUT, groups), []
    for _ in range(2):
        scores(model.train(), batch).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
        with torch.no_grad():
            scores(model.eval(), batch)
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(found[1][name], gradient), name


def test_a_language_models_output_layer_stays_whole(llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Run.create(run, stage="sft", config={"model": str(llama), "load_in_4bit": True}).finish("done")
    causal_adapter(llama, run / "adapter")
    model = load_causal(resolve(str(run), workspace=tmp_path), dtype=torch.float32)
    kinds = {n: p.dtype for n, p in model.named_parameters() if "lora" not in n}
    assert next(dtype for n, dtype in kinds.items() if "lm_head" in n) == torch.float32
    assert list(kinds.values()).count(torch.uint8) == 14


def test_a_policy_in_training_has_the_output_layer_that_it_writes_with(llama: Path, tmp_path: Path) -> None:
    """Whole, as `load_causal` loads it: else another model would be trained than the one that is used."""
    source = resolve(str(llama), workspace=tmp_path)
    model = new_policy(source, lora_r=2, lora_alpha=2, dtype=torch.float32, load_in_4bit=True)
    head = model.get_base_model().get_output_embeddings()
    assert type(head) is FrozenLinear, "no layer in 4 bits"
    assert head.weight.dtype == torch.float32
    assert sum(p.dtype == torch.uint8 for p in model.parameters()) == 14


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (None, r"is not installed\. Install it with `pip install bitsandbytes`"),
        (RuntimeError("no kernel image"), r"does not work on this machine \(no kernel image\)\. Leave it out"),
    ],
)
def test_where_bitsandbytes_cannot_be_used_it_is_told_in_a_sentence(
    module: Exception | None, sentence: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is None:
        monkeypatch.setitem(sys.modules, "bitsandbytes.nn.modules", None)
    else:

        def fails(*args: object, **options: object) -> None:
            raise module

        monkeypatch.setattr("bitsandbytes.nn.modules.Linear4bit.forward", fails)
    with pytest.raises(BadInput, match=rf"^--load_in_4bit: bitsandbytes {sentence}"):
        made(llama)


def test_the_check_passes_where_it_works() -> None:
    four_bit.check(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
