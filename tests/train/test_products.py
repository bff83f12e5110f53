"""Products with weight matrices: the numbers of `nn.Linear`, whichever library multiplies."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from train import products
from train.products import FEW, FrozenLinear, is_amd, product, use_fast_products

ROOT = Path(__file__).parents[2]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROWS = (1, 2, FEW, FEW + 1, 67)


def plain_and_ours(*, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """The same weights, frozen."""
    torch.manual_seed(0)
    plain = nn.Linear(33, 17, bias=bias).requires_grad_(False)
    ours = copy.deepcopy(plain)
    use_fast_products(ours)
    assert type(ours) is FrozenLinear
    return plain, ours


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("turned", [False, True], ids=["as stored", "transposed"])
@pytest.mark.parametrize("amd", [False, True])
def test_it_is_the_product(rows: int, biased: bool, turned: bool, amd: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 33), torch.randn(17, 33)
    if turned:
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    bias = torch.randn(17) if biased else None
    expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = product(x, weight, bias, amd=amd)
    torch.testing.assert_close(y.double(), expected, **CLOSE)
    assert y.is_contiguous()


def test_it_rounds_as_float32_does() -> None:
    """Not to fewer digits, as some libraries do for speed: the error of a sum of 4,096 is its own order's alone."""
    torch.manual_seed(0)
    x, weight = torch.randn(300, 4096), torch.randn(200, 4096)
    expected = x.double() @ weight.double().t()
    theirs, ours = (float((product(x, weight, amd=amd).double() - expected).norm()) for amd in (False, True))
    assert ours < 6 * theirs < 1e-5 * float(expected.norm())


@pytest.mark.parametrize("amd", [False, True])
def test_the_same_product_is_the_same_to_the_last_bit(amd: bool) -> None:
    """A run that is resumed computes what it did."""
    x, weight = torch.randn(301, 576), torch.randn(1536, 576)
    once = product(x, weight, amd=amd)
    assert all(torch.equal(product(x.clone(), weight.clone(), amd=amd), once) for _ in range(3))


LENGTHS = """
import random, torch
from train.products import product
torch.set_num_threads(2)  # each has room of its own
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1000
weights = [torch.randn(out, into) for out, into in ((576, 576), (1536, 576), (576, 1536), (192, 576))]
rows = torch.randn(600, 1536)
before = resident()
for length in random.Random(0).sample(range(100, 600), 60):
    for weight in weights:
        product(rows[:length, : weight.shape[1]], weight, amd=True)
        product(rows[:length, : weight.shape[0]], weight.t(), amd=True)
print(resident() - before)
"""


def test_memory_does_not_grow_with_every_new_length() -> None:
    """The libraries keep what they made for each: 360 MB here without a limit, 66 with it."""
    found = subprocess.run([sys.executable, "-c", LENGTHS], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(found.stdout) < 120, "MB"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 3, 9])
def test_other_numbers_and_no_rows_are_the_librarys(dtype: torch.dtype, rows: int) -> None:
    x, weight = torch.randn(rows, 33, dtype=dtype), torch.randn(17, 33, dtype=dtype)
    assert torch.equal(product(x, weight, amd=True), nn.functional.linear(x, weight))


@pytest.mark.parametrize("rows", ROWS)
def test_operands_may_lie_anyhow(rows: int) -> None:
    """One number for all, as the gradient of a sum; every second column; the rows backwards."""
    weight = torch.randn(17, 66)[:, ::2]
    for x in (torch.randn(1).expand(rows, 33), torch.randn(rows, 66)[:, ::2], torch.randn(rows, 33).flip(0)):
        expected = x.double() @ weight.double().t()
        torch.testing.assert_close(product(x, weight, amd=True).double(), expected, **CLOSE)
        turned = product(weight, x, amd=True)
        torch.testing.assert_close(turned.double(), expected.t(), **CLOSE)


def test_it_is_not_for_what_needs_a_gradient() -> None:
    with pytest.raises(AssertionError, match="passes none on"):
        product(torch.randn(5, 33, requires_grad=True), torch.randn(17, 33), amd=True)


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize("shape", [(33,), (3, 33), (2, 5, 33), (0, 33)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer_passes_the_gradient_on(
    shape: tuple[int, ...], bias: bool, amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "is_amd", lambda: amd)
    found: list[tuple[Tensor, Tensor | None]] = []
    x = torch.randn(shape)
    for layer in plain_and_ours(bias=bias):
        own = x.clone().requires_grad_()
        y = layer(own)
        y.sin().sum().backward()
        found.append((y.detach(), own.grad))
        assert layer.weight.grad is None
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


def test_a_layer_that_is_trained_gets_its_gradients() -> None:
    plain, ours = plain_and_ours()
    x = torch.randn(5, 33)
    for layer in (plain, ours):
        layer.requires_grad_(True)
        layer(x).sin().sum().backward()
    for own, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(own.grad, expected.grad, **CLOSE)


def test_autocast_rounds_as_ever() -> None:
    plain, ours = plain_and_ours()
    x = torch.randn(9, 33)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16 and torch.equal(ours(x), plain(x))


def test_a_model_may_write_into_the_output() -> None:
    plain, ours = plain_and_ours()
    x = torch.randn(9, 33)
    grads = []
    for layer in (plain, ours):
        own = x.clone().requires_grad_()
        layer(own).clamp_(-0.5, 0.5).sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(*grads, **CLOSE)


def test_layers_of_other_kinds_stay_and_so_do_the_names_of_weights() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 4), Other(4, 5), nn.ReLU(), nn.Linear(5, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_fast_products(model)
    assert [type(m) for m in model] == [FrozenLinear, Other, nn.ReLU, FrozenLinear]
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("told", "amd"), [("AuthenticAMD", True), ("GenuineIntel", False), (None, False)])
def test_the_system_says_whose_cpu_it_is(told: str | None, amd: bool, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    if told:
        file.write_text(f"processor\t: 0\nvendor_id\t: {told}\n")
    assert is_amd(file) == (amd and torch.backends.mkldnn.is_available())
