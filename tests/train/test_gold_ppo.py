"""The whole loop on known truth: what PPO learns from a learned reward is what the judges meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.closed_loop import BUDGET, METHODS, Loop, facts
from tests.train.gold import writer


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ppo_by_a_reward_model_of_noisy_rankings_writes_what_the_gold_likes(stories260k: Path, tmp_path: Path) -> None:
    loop = Loop(writer(stories260k, tmp_path / "base"), tmp_path, seed=0)
    stage, flags = METHODS["PPO"]
    run = loop.train(stage, "ppo", {**flags, "reward": str(loop.reward)})
    start, trained = loop.measure(loop.base), loop.measure(run)
    print(start, trained)
    assert facts(run)["roles"] == {"reward": "shared base", "critic": "copy of reward"}
    assert (trained.gold - start.gold) / start.spread >= 1.0
    assert trained.gold >= start.best_of_4, "what picking the best of four by the gold itself would give"
    assert 0 < trained.kl < BUDGET
    assert facts(run)["alarm"]["step"] is None
