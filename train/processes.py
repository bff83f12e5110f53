"""Several processes that train one model, each on its share of a step: `accelerate launch -m train …`, `torchrun`.

Each holds the whole model. A step's gradients are summed over the processes, never averaged: what they are divided by
is known for the whole step before. The main process alone writes files. With one process nothing here does anything.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.errors import BadInput, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, who may be evaluating. One that has died is noticed at once."""
_PARTING_S = 2.0
"""How long another process stays after a failure, so that the launcher does not end the main one in mid-sentence."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AT_ONCE = 1 << 24
"""Numbers of a gradient sent at a time: 64 MiB in float32."""
_FAILED, _MISTAKE = "failed", "mistake"
_LAUNCHERS = {
    "rank": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "world": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "local": ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
}
"""Where torchrun and the launchers of MPI write down who is who."""


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_joined() else _given("world", 1)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if is_joined() else _given("rank", 0)


def is_main() -> bool:
    """Whether this is the process that writes files and tells the world."""
    return rank() == 0


def join() -> None:
    """Meet the other processes, if there are any. From here on the main process alone logs and is stopped by signals.

    Raises BadInput where the launcher asks for what this is not.
    """
    _check_launcher()
    if world_size() == 1:
        return
    if not is_joined():
        _meet()
    if is_main():
        return
    logging.getLogger("train").setLevel(logging.ERROR)
    for number in _SIGNALS:  # the main process is told too, saves, and takes the others along
        signal.signal(number, signal.SIG_IGN)


def _meet() -> None:
    local, gpus = _given("local", 0), torch.cuda.device_count()
    if gpus and local >= gpus:
        raise BadInput(f"process {rank()}: this machine has {gpus} GPUs, one a process. Start {gpus} processes here.")
    if gpus:
        torch.cuda.set_device(local)
    os.environ.setdefault("RANK", str(rank()))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT, rank=rank(), world_size=world_size())
    if is_main():
        log.info("%d processes train together", world_size())


def barrier() -> None:
    """Wait until every process is here."""
    summed(torch.zeros(1))


def summed(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, which have one shape and dtype: the same bits in each of them."""
    if world_size() == 1:
        return values
    found = values.detach().to(_place(values), copy=True)
    with _together():
        dist.all_reduce(found)
    return found.to(values.device)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make each parameter's gradient the sum of the processes'; None counts as zeros where another process has one.

    The same parameters in the same order everywhere.
    """
    if world_size() == 1:
        return
    every = list(parameters)
    has = summed(torch.tensor([float(p.grad is not None) for p in every])).tolist()
    part: list[Tensor] = []
    for p, count in zip(every, has, strict=True):
        if not count:
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if part and (sum(g.numel() for g in part) + p.numel() > _AT_ONCE or part[0].dtype != p.grad.dtype):
            _sum_in_place(part)
            part = []
        part.append(p.grad)
    _sum_in_place(part)


def _sum_in_place(gradients: Sequence[Tensor]) -> None:
    """One message for many tensors of one dtype."""
    if not gradients:
        return
    whole = summed(torch.cat([g.detach().flatten() for g in gradients]))
    for gradient, found in zip(gradients, torch.split(whole, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(found.view_as(gradient))


def gathered(objects: Sequence[T]) -> list[T]:
    """The objects of all processes in rank order. Plain JSON values, of which tuples arrive as lists."""
    if world_size() == 1:
        return list(objects)
    own = torch.frombuffer(bytearray(json.dumps(list(objects)).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(world_size())]
    place = _place(own)
    with _together():
        lengths = [n.to(place) for n in lengths]
        dist.all_gather(lengths, torch.tensor([len(own)], device=place))
        longest = int(max(lengths))
        texts = [torch.zeros(longest, dtype=torch.uint8, device=place) for _ in lengths]
        dist.all_gather(texts, torch.nn.functional.pad(own, (0, longest - len(own))).to(place))
    found: list[T] = []
    for text, length in zip(texts, lengths, strict=True):
        found += json.loads(text[: int(length)].cpu().numpy().tobytes())
    return found


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives in the main process, for all; a plain JSON value. A user's mistake is raised in all of them."""
    if world_size() == 1:
        return work()
    error: UserError | None = None
    answer: list[dict[str, Any]] = []
    if is_main():
        try:
            answer = [{"value": work()}]
        except UserError as caught:
            error = caught
            answer = [{"mistake": str(caught)}]
    told = gathered(answer)[0]
    if error is not None:
        raise error
    if "mistake" in told:
        raise BadInput(told["mistake"])
    return told["value"]  # type: ignore[no-any-return]


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with the main process's, so that all begin with the same bits."""
    if world_size() == 1:
        return
    for tensor in tensors:
        found = tensor.detach().to(_place(tensor), copy=True)
        with _together():
            dist.broadcast(found, src=0)
        tensor.detach().copy_(found)


@contextmanager
def joined() -> Iterator[None]:
    """All of a training's life: meet the others, and part from them at the end."""
    join()
    with ending_together():
        yield
    if is_joined():
        dist.destroy_process_group()


@contextmanager
def ending_together() -> Iterator[None]:
    """No process waits for one that has failed, and the main process knows why it failed.

    Where that was a user's mistake, the main process raises the same BadInput, and the other ends without a word.
    """
    try:
        yield
    except BaseException as error:
        if is_joined() and is_main():
            _end_main(error)
        elif is_joined():
            _end_other(error)
        raise


def _end_main(error: BaseException) -> None:
    """Raises what another process failed by, if that is why this one ends."""
    for number in _SIGNALS:  # the launcher may now end us too; what is left is to write it down
        signal.signal(number, signal.SIG_IGN)
    word = "" if isinstance(error, UserError) else _word()
    if word:
        kind, _, sentence = word.partition("\n")
        raise (BadInput(sentence) if kind == _MISTAKE else RuntimeError(sentence)) from None


def _end_other(error: BaseException) -> None:
    """Leave word of why this process ends, unless it is because of another, and let the main one end first."""
    mistake = isinstance(error, UserError)
    if not isinstance(error, SystemExit):
        sentence = str(error) if mistake else f"process {rank()}: {type(error).__name__}: {error}"
        with suppress(RuntimeError):  # it may be gone with the main process
            _store().set(_FAILED, f"{_MISTAKE if mistake else 'error'}\n{sentence}"[:2000])
    dist.destroy_process_group()  # whoever waits for us stops waiting
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    time.sleep(_PARTING_S)
    if mistake:
        raise SystemExit(2) from None


@contextmanager
def _together() -> Iterator[None]:
    """One exchange with the other processes. Where one is gone, the main process raises RuntimeError, or what that one
    failed by; the others end without a word."""
    try:
        yield
    except RuntimeError as error:
        if not is_main():
            log.debug("process %d ends: %s", rank(), error)
            raise SystemExit(1) from None
        raise RuntimeError(f"another process has ended ({str(error).partition(chr(10))[0]})") from None


def _word() -> str:
    """Why another process failed; empty where none has told."""
    try:
        return str(_store().get(_FAILED).decode()) if _store().check([_FAILED]) else ""
    except RuntimeError:  # the launcher that keeps it is gone too
        return ""


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def is_joined() -> bool:
    """Whether the processes have met."""
    return dist.is_available() and dist.is_initialized()


def _given(what: str, otherwise: int) -> int:
    return next((int(os.environ[name]) for name in _LAUNCHERS[what] if os.environ.get(name)), otherwise)


def _place(values: Tensor) -> torch.device:
    """Where this tensor can be exchanged."""
    able = {pair.partition(":")[0] for pair in dist.get_backend_config().split(",")}  # cpu:gloo,cuda:nccl
    if values.device.type in able:
        return values.device
    return torch.device("cuda", torch.cuda.current_device()) if "cuda" in able else torch.device("cpu")


def _check_launcher() -> None:
    """Raises BadInput where a launcher started fewer processes than it was asked for, or wants to cut up the model."""
    asks_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if asks_cpu and os.environ.get("MASTER_PORT") and _given("world", 0) == 0:
        raise BadInput(
            "accelerate launch --cpu --num_processes N: without --mpirun_hostfile it starts one process only. Start "
            "them with `accelerate launch --multi_gpu --num_processes N -m train …`, which does without GPUs too."
        )
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise BadInput(
                f"accelerate launch with {name}: here each process holds the whole model. Leave it out; "
                "--load_in_4bit and --gradient_checkpointing save memory."
            )
