from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from data.errors import BadInput
from tests.train.adapters import reward_run, stir
from tests.train.families import FAMILIES, folder
from train.groups import Group
from train.layouts import PaddedRows, TreeRows, choose, score_groups, to_device
from train.models import known_warnings, resolve
from train.rewards import load_reward_model
from train.roles import VALUE_HEAD, Roles, new_roles, read_reward_adapter

GROUPS = (
    Group("p0", ((1, 40, 41, 50, 51, 2), (1, 40, 41, 60, 2), (1, 40, 41, 70, 71, 72, 2)), (2, 1, 3), shared=3),
    Group("p1", ((1, 44, 45, 46, 80, 2), (1, 44, 45, 46, 90, 91, 2)), (1, 2), shared=4),
)


@pytest.fixture(scope="module")
def reward(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_run(tiny, tmp_path_factory.mktemp("rm") / "run")


def made(base: Path, reward: Path | None, **options: Any) -> Roles:
    torch.manual_seed(3)
    adapter = read_reward_adapter(resolve(str(reward), workspace=base)) if reward else None
    source = resolve(str(base), workspace=base)
    settings = {"lora_r": 4, "lora_alpha": 8, "dtype": torch.float64, "critic": True, **options}
    roles = new_roles(source, reward=adapter, **settings)
    for name, p in roles.model.named_parameters():
        if "lora_B" in name and (".actor." in name or (".critic." in name and reward is None)):
            torch.nn.init.normal_(p, std=0.1)
    return roles


def row() -> dict[str, Any]:
    (found,) = PaddedRows(10_000).rows(GROUPS)
    return found


def gradients(roles: Roles, role: Any) -> dict[str, Tensor]:
    names = {id(p): name for name, p in roles.model.named_parameters()}
    own = roles.parameters_of(role)
    return {names.get(id(p), "head"): p.grad.clone() for p in own if p.grad is not None}


def both_gradients(roles: Roles, *, joint: bool, tree: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of actor and critic: each with a backward pass of its own, or (`joint`) one after both forward passes."""
    inputs = TreeRows(10_000).rows(GROUPS)[0] if tree else row()
    roles.model.train()
    actor_loss = roles.log_probs(inputs).square().sum()
    if not joint:
        actor_loss.backward()
    with roles.played("critic"):
        critic_loss = roles.values(inputs).square().sum()
        if not joint:
            critic_loss.backward()
    if joint:
        (actor_loss + critic_loss).backward()
    return gradients(roles, "actor"), gradients(roles, "critic")


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_switching_roles_before_the_backward_pass_loses_no_gradient(tiny: Path, reward: Path) -> None:
    apart = both_gradients(made(tiny, reward), joint=False)
    together = both_gradients(made(tiny, reward), joint=True)
    for found, expected in zip(together, apart, strict=True):
        assert_equal(found, expected)
        assert any(g.abs().max() > 0 for g in expected.values())


@pytest.mark.parametrize("joint", [False, True], ids=["role by role", "one joint backward"])
def test_gradient_checkpointing_computes_again_under_the_role_of_the_forward_pass(
    tiny: Path, reward: Path, joint: bool
) -> None:
    plain = both_gradients(made(tiny, reward), joint=False)
    again = both_gradients(made(tiny, reward, gradient_checkpointing=True), joint=joint)
    for found, expected in zip(again, plain, strict=True):
        assert_equal(found, expected)


def test_the_trap_is_real_plain_checkpointing_gives_other_gradients(tiny: Path, reward: Path) -> None:
    """Without the contexts of ours, a joint backward pass is wrong in silence: this is what the tests above guard."""
    _, plain = both_gradients(made(tiny, reward), joint=False)
    roles = made(tiny, reward)
    roles.base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    _, wrong = both_gradients(roles, joint=True)  # the actor is back in play when the critic is computed again
    worst = max(float((wrong.get(name, torch.zeros_like(g)) - g).norm() / g.norm()) for name, g in plain.items())
    assert worst > 0.1


def test_a_role_trains_itself_alone(tiny: Path, reward: Path) -> None:
    roles = made(tiny, reward)
    roles.log_probs(row()).sum().backward()
    assert gradients(roles, "actor") and not gradients(roles, "critic") and not gradients(roles, "reward")
    roles.model.zero_grad(set_to_none=True)
    with roles.played("critic"):
        roles.values(row()).sum().backward()
    assert gradients(roles, "critic") and not gradients(roles, "actor") and not gradients(roles, "reward")
    assert all(p.grad is None for p in roles.base.parameters() if not p.requires_grad)


def test_a_step_leaves_base_reward_and_reference_byte_for_byte(tiny: Path, reward: Path) -> None:
    roles = made(tiny, reward)
    trained = {id(p) for role in ("actor", "critic") for p in roles.parameters_of(role)}  # type: ignore[arg-type]
    frozen = {n: p.detach().clone() for n, p in roles.model.named_parameters() if id(p) not in trained}
    assert roles.reward_head is not None and roles.value_head is not None
    head, before = roles.reward_head.weight.detach().clone(), roles.state()
    with torch.no_grad(), roles.played("reference"):
        reference = roles.log_probs(row())
    with torch.no_grad(), roles.played("reward"):
        scores = roles.scores(row())

    optimizer = torch.optim.AdamW([*roles.parameters_of("actor"), *roles.parameters_of("critic")], lr=1e-2)
    for _ in range(2):
        both_gradients(roles, joint=False)
        optimizer.step()
        optimizer.zero_grad()

    assert all(torch.equal(p, frozen[n]) for n, p in roles.model.named_parameters() if n in frozen)
    assert torch.equal(roles.reward_head.weight, head)
    with torch.no_grad(), roles.played("reference"):
        assert torch.equal(roles.log_probs(row()), reference)
    with torch.no_grad(), roles.played("reward"):
        assert torch.equal(roles.scores(row()), scores)
    after = roles.state()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert (
        {"value_head.weight"} < set(moved)
        and any(".actor." in n for n in moved)
        and any(".critic." in n for n in moved)
    )


def test_the_reward_role_gives_the_scores_of_the_reward_model(tiny: Path, reward: Path) -> None:
    source = resolve(str(reward), workspace=tiny)
    alone = load_reward_model(source, dtype=torch.float64)
    expected = dict(score_groups(alone, GROUPS, PaddedRows(10_000)))
    roles = made(tiny, reward).to(torch.device("cpu"))
    roles.model.eval()
    with torch.no_grad(), roles.played("reward"):
        found = roles.scores(row())
    torch.testing.assert_close(found, torch.tensor([s for n in range(2) for s in expected[n]], dtype=torch.float64))


def test_the_critic_starts_as_a_copy_of_the_reward(tiny: Path, reward: Path) -> None:
    roles = made(tiny, reward)
    inputs = row()
    with torch.no_grad(), roles.played("reward"):
        scores = roles.scores(inputs)
    last_predicted = {**inputs, "predictors": inputs["ends"]}
    with torch.no_grad(), roles.played("critic"):
        assert torch.equal(roles.values(last_predicted), scores)


def test_a_fresh_critic_values_nothing_yet(tiny: Path) -> None:
    roles = made(tiny, None)
    with torch.no_grad(), roles.played("critic"):
        values = roles.values(row())
    assert len(values) and not values.any()


def test_a_new_actor_is_the_reference_and_both_are_the_base(tiny: Path, reward: Path) -> None:
    torch.manual_seed(0)
    adapter = read_reward_adapter(resolve(str(reward), workspace=tiny))
    source = resolve(str(tiny), workspace=tiny)
    roles = new_roles(source, lora_r=4, lora_alpha=8, dtype=torch.float64, reward=adapter, critic=True)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval()
    inputs = row()
    with torch.no_grad():
        actor = roles.log_probs(inputs)
        with roles.played("reference"):
            assert torch.equal(roles.log_probs(inputs), actor)
        logits = base(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.flatten(0, 1)
    expected = logits[inputs["predictors"]].log_softmax(-1).gather(1, inputs["targets"][:, None])[:, 0]
    torch.testing.assert_close(actor, expected)


@pytest.mark.parametrize("entropy_gradient", [True, False])
def test_temperature_and_entropy_are_those_of_the_divided_logits(
    entropy_gradient: bool, tiny: Path, reward: Path
) -> None:
    roles = made(tiny, reward, temperature=0.7)
    inputs = row()
    logits = roles.base(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.flatten(0, 1)
    every = (logits[inputs["predictors"]] / 0.7).log_softmax(-1)
    log_probs, entropies = roles.log_probs_and_entropies(inputs, entropy_gradient=entropy_gradient)
    assert log_probs.requires_grad and entropies.requires_grad == entropy_gradient
    torch.testing.assert_close(log_probs, every.gather(1, inputs["targets"][:, None])[:, 0])
    torch.testing.assert_close(entropies, -(every.exp() * every).sum(-1))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, -2.0)], ids=["log-probs", "entropies", "both"])
def test_gradients_of_log_probs_and_entropies_are_those_of_the_whole_logits(
    tiny: Path, reward: Path, weights: tuple[float, float]
) -> None:
    roles = made(tiny, reward)
    inputs = row()
    logits = roles.base(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.flatten(0, 1)
    every = logits[inputs["predictors"]].log_softmax(-1)
    plain = every.gather(1, inputs["targets"][:, None])[:, 0], -(every.exp() * every).sum(-1)
    coefficients = torch.linspace(-1, 1, len(plain[0]), dtype=torch.float64)

    def taken(log_probs: Tensor, entropies: Tensor) -> dict[str, Tensor]:
        roles.model.zero_grad(set_to_none=True)
        (coefficients * (weights[0] * log_probs + weights[1] * entropies.square())).sum().backward()
        return gradients(roles, "actor")

    expected = taken(*plain)
    needed = weights[1] != 0
    assert_equal(taken(*roles.log_probs_and_entropies(inputs, entropy_gradient=needed)), expected)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_roles_on_tree_rows_are_those_on_single_rows_for_every_family(
    family: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    base = folder(family, tmp_path)
    roles = made(base, reward_run(base, tmp_path / "rm"))
    layout = choose(roles.model, GROUPS, packing="auto", tokens_per_forward=10_000)
    single = [found for way in (PaddedRows(1),) for found in way.rows(GROUPS)]
    together = layout.rows(GROUPS)

    def everything(rows: list[Any]) -> Iterator[Tensor]:
        rows = to_device(rows, roles.device)
        yield torch.cat([roles.log_probs(r) for r in rows])
        with roles.played("reference"):
            yield torch.cat([roles.log_probs(r) for r in rows])
        with roles.played("critic"):
            yield torch.cat([roles.values(r) for r in rows])
        with roles.played("reward"):
            yield torch.cat([roles.scores(r) for r in rows])

    with torch.no_grad():
        for found, expected in zip(everything(together), everything(single), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_saved_roles_load_in_plain_peft(tiny: Path, reward: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    roles = made(tiny, reward, dtype=torch.float32)
    roles.save_adapter("actor", tmp_path / "adapter")
    roles.save_adapter("critic", tmp_path / "critic")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with known_warnings():
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    inputs = row()
    with torch.no_grad():
        logits = loaded(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.flatten(0, 1)
        found = logits[inputs["predictors"]].log_softmax(-1).gather(1, inputs["targets"][:, None])[:, 0]
        torch.testing.assert_close(found, roles.log_probs(inputs), rtol=1e-5, atol=1e-5)
    assert roles.value_head is not None
    assert torch.equal(load_file(tmp_path / "critic" / VALUE_HEAD)["score.weight"], roles.value_head.weight)


def test_state_comes_back_to_the_last_bit(tiny: Path, reward: Path) -> None:
    roles = made(tiny, reward)
    state = roles.state()
    stir(roles.model)
    roles.load_state(state)
    assert all(torch.equal(value, state[name]) for name, value in roles.state().items())


def test_a_reward_adapter_of_another_shape_is_refused(tiny: Path, reward: Path, tmp_path: Path) -> None:
    other = folder("gpt2", tmp_path)
    with pytest.raises(BadInput, match=r"--reward: its adapter does not fit"):
        made(other, reward)
