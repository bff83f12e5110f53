"""A server that speaks as much of vLLM's protocol as PPO uses, with a model small enough for a CPU.

What it shares with vLLM beside the routes: the ended-by token is in `token_ids`, a seed makes a response its own, the
model folder's suggestions fill what a request leaves out, and what was computed of a prompt is kept by adapter *name*.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from train.models import known_warnings

BASE = "tiny"


class LoraServer:
    """`requests`: the bodies of all completions asked for. `url`: where it listens, once it does.

    `updates`: as VLLM_ALLOW_RUNTIME_LORA_UPDATING. `token_ids`: whether it knows return_token_ids. `suggested`: what
    the model folder names, as a top_k. `rank`: the largest it takes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        updates: bool = True,
        token_ids: bool = True,
        suggested: dict[str, Any] | None = None,
        rank: int = 64,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.url = ""
        self.delay_s = 0.0
        self.broken = 0
        """Answers still to be cut off in mid-connection."""
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._token_ids = token_ids
        self._suggested = suggested or {}
        self._rank = rank
        self._first: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._lock = threading.Lock()
        self.app = self._routes(updates=updates)

    def _routes(self, *, updates: bool) -> FastAPI:
        app = FastAPI()
        app.get("/v1/models")(self._models)
        app.post("/v1/completions", response_model=None)(self._completions)
        if updates:
            app.post("/v1/load_lora_adapter", response_model=None)(self._load)
            app.post("/v1/unload_lora_adapter", response_model=None)(self._unload)
        return app

    def _models(self) -> dict[str, Any]:
        cards = [{"id": BASE, "parent": None}, *({"id": name, "parent": BASE} for name in self.names)]
        return {"object": "list", "data": cards}

    def _load(self, body: dict[str, Any]) -> Any:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.names and not body.get("load_inplace"):
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").exists():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        with self._lock, known_warnings():
            if isinstance(self._model, PeftModel):
                if name in self._model.peft_config:
                    self._model.delete_adapter(name)
                self._model.load_adapter(str(path), adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, str(path), adapter_name=name).eval()
            rank = self._model.peft_config[name].r
        if rank > self._rank:
            return _error(400, f"LoRA rank {rank} is greater than max_lora_rank {self._rank}.")
        self.names.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, body: dict[str, Any]) -> Any:
        if body["lora_name"] not in self.names:
            return _error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        self.names.remove(body["lora_name"])
        return PlainTextResponse("Success")

    def _completions(self, body: dict[str, Any]) -> Any:
        self.requests.append(body)
        if body["model"] not in [BASE, *self.names]:
            return _error(404, f"The model `{body['model']}` does not exist.")
        time.sleep(self.delay_s)
        with self._lock:
            if self.broken:
                self.broken -= 1
                return _Cut()
            ids, reason = self._write({**self._suggested, **body})
        choice = {"index": 0, "text": "", "finish_reason": reason, "token_ids": ids if self._token_ids else None}
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    @torch.no_grad()
    def _write(self, asked: dict[str, Any]) -> tuple[list[int], str]:
        """One token after another, each from the request's own generator."""
        torch.set_num_threads(1)  # of this thread
        chance = torch.Generator().manual_seed(asked["seed"])
        ids: list[int] = []
        while len(ids) < asked["max_tokens"]:
            logits = self._logits(asked["model"], (*asked["prompt"], *ids), first=not ids)
            if asked.get("top_k"):
                logits = logits.masked_fill(logits < logits.topk(asked["top_k"]).values[-1], -torch.inf)
            if asked["temperature"]:
                shares = (logits / asked["temperature"]).softmax(dim=0)
                ids.append(int(torch.multinomial(shares, 1, generator=chance)))
            else:
                ids.append(int(logits.argmax()))
            if ids[-1] in asked["stop_token_ids"]:
                return ids, "stop"
        return ids, "length"

    def _logits(self, name: str, ids: tuple[int, ...], *, first: bool) -> Tensor:
        """Of the next token; those after a prompt are kept by the adapter's name, as vLLM keeps a prompt's blocks."""
        if first and (name, ids) in self._first:
            return self._first[name, ids]
        model = self._model
        if name == BASE and isinstance(model, PeftModel):
            with model.disable_adapter():
                found = model(torch.tensor([ids])).logits[0, -1]
        else:
            if isinstance(model, PeftModel):
                model.set_adapter(name)
            found = model(torch.tensor([ids])).logits[0, -1]
        if first:
            self._first[name, ids] = found
        return found


class _Cut(PlainTextResponse):
    """Half an answer: the connection ends before the promised length."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionError


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)


@contextmanager
def running(served: LoraServer) -> Iterator[LoraServer]:
    """While inside, it listens on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(served.app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join(10)
