"""Rollouts as PPO keeps them, made without a model: the numbers fit each other. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from train.rollout_files import file_of, write_rollouts

KL_COEF = 0.05
EOS = "<|im_end|>"
QUESTIONS = (
    "Name a small cat in one sentence.",
    "Why is the sky blue?\nAnswer a child.",
    "What <b>rhymes</b> with ${blue}?",
    "Give me three uses of a brick.",
)
WORDS = (
    *(" The", " sky", " is", " blue", " because", " light", " of", " short", " waves", " bends", " more", ","),
    *(
        " and",
        " a",
        " small",
        " cat",
        " called",
        " Mi",
        "mi",
        " sleeps",
        " on",
        " the",
        " warm",
        " roof",
        ".\n",
        " <b>",
    ),
)


def metadata(prompts: int = 4, *, step: int = 1) -> dict[str, Any]:
    """What lies beside the columns."""
    asked = [[{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}] for i in range(prompts)]
    return {"prompts": asked, "step": step, "kl_coef": KL_COEF}


def columns(
    prompts: int = 4, *, samples: int = 2, longest: int = 60, critic: bool = True, gold: bool = True, seed: int = 0
) -> dict[str, list[Any]]:
    """The columns of one step; every third response is cut off, the last token of one prompt was not learned from."""
    chance = np.random.default_rng(seed)
    made: dict[str, list[Any]] = {}
    for response in range(prompts * samples):
        finished = response % 3 != 2
        texts = list(chance.choice(WORDS, size=int(chance.integers(8, longest)) if finished else longest))
        rows = _response([*texts, EOS] if finished else texts, chance)
        rows |= {
            "response": [response] * len(rows["text"]),
            "prompt_id": [f"p{response // samples}"] * len(rows["text"]),
            "finished": [finished] * len(rows["text"]),
        }
        if not critic:
            rows |= {name: [None] * len(rows["text"]) for name in ("value", "return")}
        if not gold:
            rows["gold"] = [None] * len(rows["text"])
        for name, values in rows.items():
            made.setdefault(name, []).extend(values)
    return made


def _response(texts: list[str], chance: np.random.Generator) -> dict[str, list[Any]]:
    """One response: penalties and score as rewards, the sum to come as return, GAE with lambda 0.95."""
    count = len(texts)
    log_prob = -chance.gamma(1.0, 1.2, count)
    kl = np.maximum(chance.normal(0.05, 0.15, count), log_prob)  # no log-prob above 0
    score = float(chance.normal(0.5, 1.0))
    reward = -KL_COEF * kl
    reward[-1] += score
    value = np.linspace(0.2, score, count) + chance.normal(0, 0.1, count)
    delta = reward + np.append(value[1:], 0.0) - value
    advantage = np.zeros(count)
    for t in reversed(range(count)):
        advantage[t] = delta[t] + (0.95 * advantage[t + 1] if t + 1 < count else 0.0)
    return {
        "text": texts,
        "token_id": [int(i) for i in chance.integers(3, 50_000, count)],
        "log_prob": list(log_prob),
        "reference_log_prob": list(log_prob - kl),
        "kl": list(kl),
        "reward": list(reward),
        "value": list(value),
        "return": list(advantage + value),
        "advantage": list(advantage),
        "ratio": list(np.exp(chance.normal(0, 0.12, count))),
        "mask": [True] * (count - 1) + [count % 7 != 0],
        "score": [score] * count,
        "gold": [score * 0.8] * count,
    }


def add_rollouts(run: Path, step: int = 1, **options: Any) -> Path:
    """A step's file in a run folder."""
    path = file_of(run, step)
    prompts = options.get("prompts", 4)
    write_rollouts(path, columns(**{"seed": step, **options}), metadata=metadata(prompts, step=step))
    return path
