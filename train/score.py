"""`python -m train score`: the reward of each response."""

from __future__ import annotations

import json
import logging
import sys
import time

import torch
from tqdm import tqdm

from data.errors import BadInput
from data.importing import read_records
from data.json_lines import encode_json
from train.command_configs import ScoreConfig
from train.files import atomic_text, check_out_file
from train.groups import encode_group
from train.layouts import choose, score_groups
from train.models import device, load_config, load_tokenizer, resolve
from train.rewards import load_reward_model, row_limit

DEFAULT_MAX_LENGTH = 1024

log = logging.getLogger(__name__)


def main(config: ScoreConfig) -> str:
    """Score every response of a file, rows in the file's order; returns the rows, or with --out a summary."""
    if config.out is not None:
        check_out_file(config.out, flag="--out")
    began = time.monotonic()
    records = list(read_records(config.data, min_responses=1))
    if not records:
        raise BadInput(f"{config.data}: no rows. Give a file with prompts and responses.")
    source = resolve(config.model, workspace=config.workspace)
    tokenizer = load_tokenizer(source)
    model = load_reward_model(source, dtype=torch.bfloat16 if config.bf16 else torch.float32).to(device())
    asked = config.max_length or source.max_length or DEFAULT_MAX_LENGTH
    limit = row_limit(load_config(source), asked=asked)
    counts = {"prompts_cut": 0, "responses_cut": 0, "boundaries_moved": 0}
    groups = [encode_group(r, tokenizer, max_length=limit, counts=counts) for r in records]
    scores: list[list[float]] = [[] for _ in groups]
    layout = choose(model, groups, packing=config.packing, tokens_per_forward=config.tokens_per_forward)
    found = score_groups(model, groups, layout)
    for number, own in tqdm(found, total=len(groups), unit="prompt", file=sys.stderr, disable=None):
        scores[number] = own
    rows = [encode_json({"id": r.id, "scores": own}) for r, own in zip(records, scores, strict=True)]
    summary = {"prompts": len(groups), "responses": sum(map(len, scores)), **counts}
    log.info("scored: %s, in %.1f s", ", ".join(f"{k} {n}" for k, n in summary.items() if n), time.monotonic() - began)
    if config.out is None:
        return "\n".join(rows)
    with atomic_text(config.out) as file:
        file.writelines(row + "\n" for row in rows)
    return json.dumps({**summary, "out": str(config.out)}) if config.json else str(config.out)
