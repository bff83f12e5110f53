"""Rows for TRL."""

from __future__ import annotations

import json

from data.exporting import pairs_of
from data.records import read_record
from data.trl import trl_lines


def test_a_ranking_becomes_explicit_conversational_pairs() -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": 'Say "x"\u2028'},
    ]
    row = {"id": "p1", "prompt": prompt, "responses": ["one", "two", "three"], "ranking": "A3>A1>A2"}
    record = read_record(row, where="test")
    lines = list(trl_lines(record, pairs_of(record, record.rankings[0]).kept))
    pairs = [("three", "one", 1.0), ("three", "two", 2.0), ("one", "two", 1.0)]
    assert [json.loads(line) for line in lines] == [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "margin": margin,
            "weight": 1 / 3,
            "prompt_id": "p1",
        }
        for chosen, rejected, margin in pairs
    ]
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert all('"margin": 1.0' in line or '"margin": 2.0' in line for line in lines), "a float on every row"
