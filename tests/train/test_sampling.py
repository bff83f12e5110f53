"""Sampling: each response has a chance of its own, drawn from the model's distribution and cut at EOS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedTokenizerBase,
)

from tests.train.families import FAMILIES, GROUPED, WINDOW, folder
from train.command_configs import GenerateConfig
from train.models import known_warnings, load_causal, load_tokenizer, resolve
from train.sampling import _chance, cut_at_eos, sample_all

PROMPTS = [[1, 50, 60], [1, 2, 80, 81, 82, 0, 83], [1] * 20, [0, 0, 70]]


def config(**changes: Any) -> GenerateConfig:
    settings: dict[str, Any] = {"samples": 2, "max_new_tokens": 10, "top_p": 1.0, "temperature": 1.0}
    here = Path()
    return GenerateConfig(model="m", prompts=here, out=here, **{**settings, **changes})


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_causal(resolve(str(tiny), workspace=tmp_path_factory.mktemp("w")), dtype=torch.float64)


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.8, "temperature": 1.3}, {"temperature": 0.0, "samples": 1}])
def test_the_batch_does_not_show_in_what_is_written(changes: dict, model: Any, tokenizer: Any) -> None:
    """Left padding, masks, positions and chance: together, apart, in another order, beside other prompts."""
    together = sample_all(model, tokenizer, PROMPTS, config=config(batch_size=16, **changes))
    assert sample_all(model, tokenizer, PROMPTS, config=config(batch_size=3, **changes)) == together
    assert sample_all(model, tokenizer, PROMPTS[::-1], config=config(**changes)) == together[::-1]
    assert [sample_all(model, tokenizer, [p], config=config(**changes))[0] for p in PROMPTS] == together


@pytest.mark.parametrize("family", FAMILIES)
def test_responses_to_one_prompt_share_what_is_computed_of_it(family: str, tmp_path: Path, tokenizer: Any) -> None:
    source = resolve(str(folder(family, tmp_path)), workspace=tmp_path)
    model = load_causal(source, dtype=torch.float64)
    prompts = [[1, *range(50, 50 + WINDOW + 6)], [1, 60, 61]]  # one is longer than a window, one is padded
    computed: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: computed.append(given[0].numel()))
    together = sample_all(model, tokenizer, prompts, config=config(samples=3, batch_size=6, max_new_tokens=20))
    assert computed[0] == 2 * (len(prompts[0]) - 1), "two prompts, not six, but for their last tokens"
    assert set(computed[1:]) == {6}
    alone = [
        [*sample_all(model, tokenizer, [p], config=config(samples=1, max_new_tokens=20), first=n)[0]]
        for p in prompts
        for n in range(3)
    ]
    assert [s for own in together for s in own] == [s for own in alone for s in own]


@pytest.mark.parametrize(
    "made",
    [
        lambda: Lfm2ForCausalLM(Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_multiple_of=8)),
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    ],
)
def test_a_model_that_keeps_something_else_than_keys_and_values_reads_each_prompt_anew(
    made: Callable[[], Any], tokenizer: Any
) -> None:
    torch.manual_seed(0)
    model = made().double().eval()
    prompts = [[1, 50, 51, 52], [1, 60, 61, 62]]
    computed: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: computed.append(given[0].numel()))
    together = sample_all(model, tokenizer, prompts, config=config(batch_size=4))
    assert computed[0] == 4 * 4
    assert together == sample_all(model, tokenizer, prompts, config=config(batch_size=1))


def test_a_prompt_of_one_token_is_read_with_the_responses(model: Any, tokenizer: Any) -> None:
    prompts = [[1, 50, 60], [7]]
    together = sample_all(model, tokenizer, prompts, config=config())
    assert together == [sample_all(model, tokenizer, [p], config=config())[0] for p in prompts]


def test_samples_and_seeds_differ_and_more_samples_keep_the_first_ones(model: Any, tokenizer: Any) -> None:
    (two,) = sample_all(model, tokenizer, PROMPTS[:1], config=config())
    (four,) = sample_all(model, tokenizer, PROMPTS[:1], config=config(samples=4))
    assert len(set(four)) == 4
    assert four[:2] == two
    assert sample_all(model, tokenizer, PROMPTS[:1], config=config(), first=2) == [four[2:]]
    assert sample_all(model, tokenizer, PROMPTS[:1], config=config(seed=43)) != [two]


def test_a_prompt_that_comes_twice_gets_other_responses(model: Any, tokenizer: Any) -> None:
    one, again = sample_all(model, tokenizer, [PROMPTS[0], PROMPTS[0]], config=config())
    assert len({*one, *again}) == 4


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_tokens_come_as_often_as_the_distribution_says(model: Any, temperature: float, top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(-1)
    expected = (logits / temperature).softmax(-1)
    if top_p < 1:
        expected[2:] = 0  # the two likeliest hold 0.88, the first alone 0.64
        expected /= expected.sum()
    steps = _chance(range(20_000), model=model, config=config(temperature=temperature, top_p=top_p))
    found = steps(torch.zeros(20_000, 1), logits.repeat(20_000, 1)).argmax(-1).bincount(minlength=4) / 20_000
    assert found.tolist() == pytest.approx(expected.tolist(), abs=0.012)


def test_the_models_own_settings_and_torchs_random_state_are_left_alone(
    tiny: Path, tokenizer: Any, tmp_path: Path
) -> None:
    base = load_causal(resolve(str(tiny), workspace=tmp_path), dtype=torch.float32)
    with known_warnings():
        adapted = get_peft_model(base, LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear"))
    before, state = base.generation_config, torch.get_rng_state()
    sample_all(adapted, tokenizer, PROMPTS, config=config())
    assert base.generation_config is before
    assert adapted.generation_config is before
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_folder_suggests_changes_no_response_but_its_eos_ends_one(model: Any, tokenizer: Any) -> None:
    plain = sample_all(model, tokenizer, PROMPTS, config=config())
    suggested = model.generation_config
    try:
        suggested.top_k, suggested.repetition_penalty = 1, 5.0
        assert sample_all(model, tokenizer, PROMPTS, config=config()) == plain
        suggested.eos_token_id = list(range(model.config.vocab_size))
        ended = sample_all(model, tokenizer, PROMPTS, config=config())
        assert {(s.finished, s.tokens) for own in ended for s in own} == {(True, 0)}
    finally:
        suggested.top_k, suggested.repetition_penalty, suggested.eos_token_id = 50, 1.0, 2


def test_text_ends_at_the_first_eos_and_unfinished_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    eos, a = tokenizer.eos_token_id, tokenizer.encode("a")[0]
    assert cut_at_eos([a, a, eos, a], tokenizer, stops=[eos]) == ("aa", True, 2, (a, a, eos))
    assert cut_at_eos([a, a], tokenizer, stops=[eos]) == ("aa", False, 2, (a, a))
    assert cut_at_eos([eos], tokenizer, stops=[eos]) == ("", True, 0, (eos,))


def test_the_tokenizer_of_a_folder_ends_responses_too(tiny: Path, model: Any, tmp_path: Path) -> None:
    own = load_tokenizer(resolve(str(tiny), workspace=tmp_path))
    assert own.eos_token_id == 2
    found = sample_all(model, own, PROMPTS, config=config(samples=8, max_new_tokens=60))
    flat = [s for samples in found for s in samples]
    assert {s.finished for s in flat} == {True, False}
    assert all(s.tokens == 60 for s in flat if not s.finished)
