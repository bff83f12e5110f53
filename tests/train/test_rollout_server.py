"""Responses from a real server on this machine, which runs a tiny model under a LoRA adapter."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from data.errors import BadInput
from tests.train.adapters import causal_adapter
from tests.train.lora_server import BASE, LoraServer, running
from train import rollout_server
from train.interrupt import Interrupt, Stopped
from train.models import ModelSource, load_causal
from train.rollout_server import ServerEngine
from train.sampling import sample_all

PROMPTS = [[1, 10, 11, 12], [1, 20, 21, 22, 23, 24], [1, 30]]
STOPS = [2]


@dataclass(frozen=True)
class Plain:
    samples: int = 3
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 6
    batch_size: int = 4
    seed: int = 7


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[LoraServer]:
    with running(LoraServer(tiny, suggested={"top_k": 1})) as one:
        yield one


def adapter(tiny: Path, folder: Path, *, seed: int) -> Path:
    """An adapter that changes what the model writes, of rank 4."""
    return causal_adapter(tiny, folder, seed=seed, with_tokenizer=False)


def engine(server: LoraServer, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> ServerEngine:
    return ServerEngine(server.url, **{"model": "", "stops": STOPS, "tokenizer": tokenizer, **changes})


def ids_of(written: Any) -> list[list[tuple[int, ...]]]:
    return [[sample.ids for sample in own] for own in written]


def test_the_server_writes_what_the_adapter_would_here(
    server: LoraServer, tiny: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Without chance, so that two samplers must agree; some responses end by themselves, some are cut."""
    greedy = replace(Plain(), temperature=0.0, samples=1)
    stops = [2, *range(100, 125)]
    ours = engine(server, tokenizer, stops=stops)
    ended = set()
    for seed in range(6):
        folder = adapter(tiny, tmp_path / str(seed), seed=seed)
        ours.reload(folder, "actor")
        local = load_causal(ModelSource("tiny", str(tiny), adapter=folder), dtype=torch.float32)
        local.generation_config.eos_token_id = stops
        written = ours.write(PROMPTS, config=greedy)
        assert written == sample_all(local, tokenizer, PROMPTS, config=greedy, quiet=True)
        ended |= {own[0].finished for own in written}
    assert ended == {True, False}, "both ways to end must be seen"


def test_new_weights_write_at_once_though_prompts_are_kept_by_the_adapters_name(
    server: LoraServer, tiny: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    ours, folder = engine(server, tokenizer), tmp_path / "adapter"
    ours.reload(adapter(tiny, folder, seed=1), "actor")
    before = ids_of(ours.write(PROMPTS, config=Plain()))
    ours.reload(adapter(tiny, folder, seed=2), "actor")
    after = ids_of(ours.write(PROMPTS, config=Plain()))
    alone = engine(server, tokenizer)
    alone.reload(adapter(tiny, tmp_path / "other", seed=2), "actor")
    assert after == ids_of(alone.write(PROMPTS, config=Plain()))
    firsts = [[one[0] for own in found for one in own] for found in (before, after)]
    assert firsts[0] != firsts[1], "the very first token is that of the new weights too"


def test_the_old_adapter_is_taken_from_the_server_when_a_new_one_comes(
    tiny: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with running(LoraServer(tiny)) as server:
        ours = engine(server, tokenizer)
        for seed in (1, 2, 2):
            ours.reload(adapter(tiny, tmp_path / "adapter", seed=seed), "actor")
            assert len(server.names) == 1
        assert ours.base == BASE, "an adapter is no base model"
        assert engine(server, tokenizer).base == BASE


def test_a_response_hangs_on_its_own_seed_and_on_nothing_beside_it(
    server: LoraServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    ours = engine(server, tokenizer)
    whole = ids_of(ours.write(PROMPTS, config=Plain()))
    assert whole == ids_of(ours.write(PROMPTS, config=replace(Plain(), batch_size=1)))
    assert whole[1:2] == ids_of(ours.write(PROMPTS[1:2], config=Plain()))
    assert [own[:1] for own in whole] == ids_of(ours.write(PROMPTS, config=replace(Plain(), samples=1)))
    assert len({one for own in whole for one in own}) == 9, "each sample is another draw"
    assert whole != ids_of(ours.write(PROMPTS, config=replace(Plain(), seed=8)))
    twice = ids_of(ours.write([PROMPTS[0], PROMPTS[0]], config=Plain()))
    assert twice[0] == whole[0] and not set(twice[0]) & set(twice[1]), "a prompt that comes twice is answered anew"


def test_what_the_model_folder_suggests_changes_no_distribution(
    server: LoraServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The server would fill in a top_k of 1."""
    server.requests.clear()
    written = engine(server, tokenizer).write(PROMPTS[:1], config=replace(Plain(), samples=8))
    assert len({sample.ids for sample in written[0]}) > 1
    asked = server.requests
    assert len({body["seed"] for body in asked}) == len(asked) == 8
    assert {(b["n"], b["top_p"], b["top_k"], b["repetition_penalty"], b["ignore_eos"]) for b in asked} == {
        (1, 1.0, 0, 1.0, True)
    }


def test_a_connection_that_breaks_is_tried_again(
    tiny: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_server, "_PAUSES_S", (0.01, 0.01))
    with running(LoraServer(tiny)) as server:
        ours = engine(server, tokenizer)
        whole = ours.write(PROMPTS, config=Plain())
        server.broken = 2
        assert ours.write(PROMPTS, config=Plain()) == whole
        server.broken = 1000
        with pytest.raises(BadInput, match="the server does not answer"):
            ours.write(PROMPTS, config=Plain())


def test_a_stop_does_not_wait_for_the_server(tiny: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with running(LoraServer(tiny)) as server:
        ours = engine(server, tokenizer)
        server.delay_s = 30.0
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with Interrupt(), pytest.raises(Stopped):
            ours.write(PROMPTS[:1], config=Plain())
        assert time.monotonic() - began < 10
        server.delay_s = 0.0


def test_no_server_is_told_in_a_sentence(tokenizer: PreTrainedTokenizerBase) -> None:
    for url in ("http://127.0.0.1:9/v1", "not an address"):
        with pytest.raises(BadInput, match=r"does not answer \(.*\). Start it with `VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            ServerEngine(url, model="", stops=STOPS, tokenizer=tokenizer)


def test_another_kind_of_server_is_told_in_a_sentence(server: LoraServer, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match=r"no OpenAI-compatible server \(404 at /models\). Give the address up to /v1"):
        ServerEngine(server.url.removesuffix("/v1"), model="", stops=STOPS, tokenizer=tokenizer)


def test_a_model_that_is_not_served_is_told_in_a_sentence(
    server: LoraServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(BadInput, match=r"--rollout_model big: the server has tiny. Name one of them"):
        engine(server, tokenizer, model="big")
    assert engine(server, tokenizer, model=BASE).base == BASE


def test_a_server_that_takes_no_adapters_is_told_in_a_sentence(
    tiny: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with running(LoraServer(tiny, updates=False)) as server:
        sentence = (
            "takes no adapters while it runs. .*LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 4`"
        )
        with pytest.raises(BadInput, match=sentence):
            engine(server, tokenizer).reload(adapter(tiny, tmp_path, seed=1), "actor")


def test_an_adapter_that_the_server_refuses_is_told_with_its_words(
    tiny: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with running(LoraServer(tiny, rank=2)) as server:
        with pytest.raises(BadInput, match="400: LoRA rank 4 is greater than max_lora_rank 2") as refused:
            engine(server, tokenizer).reload(adapter(tiny, tmp_path, seed=1), "actor")
        assert "--max-lora-rank 4" in str(refused.value)


def test_an_answer_without_token_ids_is_told_in_a_sentence(tiny: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    sentence = "answers without token ids, .*vLLM 0.10.2 or newer"
    with running(LoraServer(tiny, token_ids=False)) as server, pytest.raises(BadInput, match=sentence):
        engine(server, tokenizer).write(PROMPTS, config=Plain())


def test_a_server_that_was_started_anew_is_told_in_a_sentence(
    server: LoraServer, tiny: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    ours = engine(server, tokenizer)
    ours.reload(adapter(tiny, tmp_path, seed=1), "actor")
    server.names.clear()
    with pytest.raises(BadInput, match=r"does not know the adapter any more .*started anew"):
        ours.write(PROMPTS, config=Plain())


def test_a_response_that_ends_by_another_token_is_refused(
    server: LoraServer, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would count as cut off, and be punished for it."""
    write = server._write
    monkeypatch.setattr(server, "_write", lambda asked: ([*write(asked)[0][:3], 50], "stop"))
    with pytest.raises(BadInput, match="with token 50 for the reason 'stop', against the stop tokens"):
        engine(server, tokenizer).write(PROMPTS, config=Plain())
