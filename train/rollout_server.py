"""Responses written by a server: vLLM's OpenAI-compatible protocol, with the policy's adapter loaded anew as it learns.

Every response is a request of its own with a seed of its own, so that it does not hang on what else the server writes,
but for rounding, which there differs with the batch: the log-probs that are learned from are always computed here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from data.errors import BadInput
from train.files import sha256_of
from train.processes import on_main
from train.sampling import Draw, Sample, Sampling, cut_at_eos, draws_of

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Seconds; a response may wait until others are written."""
_PAUSES_S = (1.0, 5.0)
"""Before a request is sent again whose connection broke. The same seed asks for the same response."""
_START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank {rank}"


class ServerEngine:
    """Writes by a server what the adapter that it was handed last would."""

    def __init__(self, url: str, *, model: str, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
        """`url` ends in /v1. `model`: what the server calls the base; empty takes the first that it lists. `stops`: the
        tokens that end a response. Raises BadInput where the server is not there or does not serve that model.
        """
        self._url = url.rstrip("/")
        self._stops = list(stops)
        self._tokenizer = tokenizer
        self._served = ""
        self.base: str = on_main(lambda: self._find_base(model))

    def reload(self, adapter: Path, name: str) -> None:
        """Hand over the adapter in a folder that the server can read; in the main process. Raises BadInput.

        The server gets it under a name that no other weights have had: it keeps what it computed of a prompt by the
        adapter's name, and would go on from the old weights' numbers.
        """
        path = adapter.resolve()
        served = f"{name}-{hashlib.sha256(f'{path} {sha256_of(path)}'.encode()).hexdigest()[:16]}"
        if served == self._served:
            return
        if self._served:  # it may have gone by itself
            self._post("unload_lora_adapter", {"lora_name": self._served})
        answer = self._post("load_lora_adapter", {"lora_name": served, "lora_path": str(path)})
        if not answer.is_success and "already been loaded" not in answer.text:
            raise BadInput(self._refused_adapter(answer, path))
        self._served = served

    def write(self, prompts: Sequence[Sequence[int]], *, config: Sampling) -> list[list[Sample]]:
        """`config.samples` responses to each prompt (token ids), `config.batch_size` at a time; all processes at once.

        Raises BadInput where an answer is not what was asked for.
        """
        self._served = on_main(lambda: self._served)
        draws = draws_of(prompts, config=config, first=0)
        written = asyncio.run(self._write_all(prompts, draws, config=config))
        found: list[list[Sample]] = [[] for _ in prompts]
        for draw, ids in zip(draws, written, strict=True):
            found[draw.place].append(cut_at_eos(ids, self._tokenizer, stops=self._stops))
        return found

    async def _write_all(
        self, prompts: Sequence[Sequence[int]], draws: Sequence[Draw], *, config: Sampling
    ) -> list[list[int]]:
        turns = asyncio.Semaphore(config.batch_size)
        limits = httpx.Limits(max_connections=config.batch_size)
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT, limits=limits) as client:

            async def one(draw: Draw) -> list[int]:
                async with turns:
                    body = self._request(prompts[draw.place], seed=draw.seed, config=config)
                    return self._ids(await self._ask(client, body), most=config.max_new_tokens)

            try:
                async with asyncio.TaskGroup() as group:  # where one fails, the others end before the connections do
                    tasks = [group.create_task(one(draw)) for draw in draws]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

    def _request(self, prompt: Sequence[int], *, seed: int, config: Sampling) -> dict[str, Any]:
        """Plain sampling. What is left out the server fills from the model folder, which may name a top_k."""
        return {
            "model": self._served or self.base,
            "prompt": list(prompt),
            "n": 1,
            "seed": seed,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": config.max_new_tokens,
            "stop_token_ids": self._stops,
            "ignore_eos": True,  # by the server's own notion of it; ours is among the stop tokens
            "return_token_ids": True,
        }

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        for pause in (*_PAUSES_S, None):
            try:
                return await client.post(f"{self._url}/completions", json=body)
            except httpx.TransportError as error:
                if pause is None or isinstance(error, httpx.TimeoutException):
                    raise BadInput(self._unreachable(error)) from None
                await asyncio.sleep(pause)
        raise AssertionError("the last pause is None")

    def _ids(self, answer: httpx.Response, *, most: int) -> list[int]:
        """The written tokens, the one that ended them included. Raises BadInput."""
        if answer.status_code == 404 and self._served:
            raise BadInput(
                f"--rollout_url {self._url}: the server does not know the adapter any more ({_words(answer)}); was it "
                "started anew? Continue the run with --resume."
            )
        if not answer.is_success:
            raise BadInput(f"--rollout_url {self._url}: the server refuses to write ({_words(answer)}). {_REMEDY}")
        choice = self._json(answer, "choices")[0]
        ids = choice.get("token_ids") if isinstance(choice, dict) else None
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise BadInput(
                f"--rollout_url {self._url}: the server answers without token ids, and text does not say which tokens "
                "it was. Use vLLM 0.10.2 or newer, which knows return_token_ids."
            )
        if not 1 <= len(ids) <= most or (choice.get("finish_reason") == "stop") != (ids[-1] in self._stops):
            raise BadInput(
                f"--rollout_url {self._url}: the server ended a response of {len(ids)} tokens with token "
                f"{ids[-1] if ids else 'none'} for the reason '{choice.get('finish_reason')}', against the stop tokens "
                f"{self._stops} and at most {most}. Serve the model that --model names, with nothing set beside."
            )
        return ids

    def _find_base(self, model: str) -> str:
        """What the server calls the base model."""
        try:
            answer = httpx.get(f"{self._url}/models", timeout=_TIMEOUT, trust_env=False)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise BadInput(self._unreachable(error)) from None
        if not answer.is_success:
            raise BadInput(
                f"--rollout_url {self._url}: no OpenAI-compatible server ({answer.status_code} at /models). Give the "
                "address up to /v1; a server that asks for a key must be started without."
            )
        listed = [card for card in self._json(answer, "data") if isinstance(card, dict) and not card.get("parent")]
        names = [str(card.get("id")) for card in listed]
        if model and model not in names:
            raise BadInput(f"--rollout_model {model}: the server has {', '.join(names)}. Name one of them.")
        return model or names[0]

    def _post(self, route: str, body: dict[str, Any]) -> httpx.Response:
        try:
            return httpx.post(f"{self._url}/{route}", json=body, timeout=_TIMEOUT, trust_env=False)
        except httpx.TransportError as error:
            raise BadInput(self._unreachable(error)) from None

    def _json(self, answer: httpx.Response, name: str) -> list[Any]:
        """The list of that name in an answer. Raises BadInput where there is none, or an empty one."""
        try:
            found = answer.json()[name]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, list) or not found:
            raise BadInput(f"--rollout_url {self._url}: an answer without '{name}'. Give the address of a vLLM server.")
        return found

    def _refused_adapter(self, answer: httpx.Response, path: Path) -> str:
        """Why the server did not take it, and what to do."""
        start = _START.format(rank=json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["r"])
        if answer.status_code in (404, 405) and not re.search(
            "lora|adapter", answer.text, re.IGNORECASE
        ):  # no such route
            return f"--rollout_url {self._url}: the server takes no adapters while it runs. Start it with `{start}`."
        return (
            f"--rollout_url {self._url}: the server refuses the adapter in {path} ({_words(answer)}). It must be able "
            f"to read that folder, and be started with `{start}`."
        )

    def _unreachable(self, error: Exception) -> str:
        what = "answers too late" if isinstance(error, httpx.TimeoutException) else "does not answer"
        return (
            f"--rollout_url {self._url}: the server {what} ({type(error).__name__}). Start it with "
            f"`{_START.format(rank='RANK')}`, or correct the address."
        )


_REMEDY = "If a prompt with --max_new_tokens is too long for it, start it with a larger --max-model-len."


def _words(answer: httpx.Response) -> str:
    """The server's own words for a refusal, in one line."""
    try:
        found = answer.json()
    except ValueError:
        found = None
    inner = found.get("error", found) if isinstance(found, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else None
    return " ".join(f"{answer.status_code}: {message or answer.text}".split())[:300]
