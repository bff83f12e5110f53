"""The native row: the one door through which prompts, responses and rankings come in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data.errors import BadInput
from data.records import MAX_RESPONSES, Message, Response, read_record, write_record

ROW: dict[str, Any] = {"prompt": "苹果是什么?", "responses": ["一种水果", "一家公司", "不知道"]}


def test_a_text_prompt_is_one_user_turn_and_the_id_comes_from_the_content() -> None:
    record = read_record(ROW, where="f:1")
    assert record.prompt == (Message("user", "苹果是什么?"),)
    assert record.id == read_record(dict(ROW), where="f:2").id
    assert record.id != read_record(ROW | {"responses": ["a", "b"]}, where="f:1").id


def test_every_field_survives_writing_and_reading() -> None:
    row = {
        "id": "apple",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}],
        "responses": [{"text": "one", "model": "m1", "id": "r1"}, {"text": ""}],
        "rankings": [
            {
                "annotator": "lin",
                "ranking": "A2|A1",
                "order": [2, 1],
                "seconds": 3.5,
                "comment": "short",
                "revision": 4,
                "created_at": "2026-11-24T08:00:00+08:00",
            }
        ],
        "set_aside": [{"annotator": "wei", "status": "flagged", "reason": "rude"}],
        "metadata": {"source": "test"},
        "split": "eval",
    }
    record = read_record(row, where="f:1")
    assert read_record(json.loads(json.dumps(write_record(record))), where="f:1") == record
    assert write_record(record)["rankings"][0]["created_at"] == "2026-11-24T00:00:00+00:00"


def test_a_single_ranking_beside_the_row_belongs_to_its_annotator() -> None:
    record = read_record(ROW | {"ranking": "A1>A3", "annotator": "lin"}, where="f:1")
    assert [(r.annotator, str(r.ranking)) for r in record.rankings] == [("lin", "A1>A3")]
    assert read_record(ROW | {"ranking": "A1>A3"}, where="f:1").rankings[0].annotator == "imported"


def test_unknown_keys_are_kept_as_metadata() -> None:
    assert read_record(ROW | {"topic": "fruit", "metadata": {"lang": "zh"}}, where="f").metadata == {
        "topic": "fruit",
        "lang": "zh",
    }


def test_equal_prompts_share_a_hash_whatever_their_responses() -> None:
    one = read_record(ROW, where="f")
    two = read_record({"prompt": [{"role": "user", "content": "苹果是什么?"}], "responses": ["x", "y"]}, where="f")
    assert one.prompt_hash == two.prompt_hash
    assert one.content_hash != two.content_hash


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"responses": ["only"]}, "1 response; a ranking needs at least 2"),
        ({"responses": []}, "0 responses; a ranking needs at least 2"),
        ({"responses": ["x"] * (MAX_RESPONSES + 1)}, "at most 50 can be ranked"),
        ({"responses": "x"}, "'responses' is a text"),
        ({"responses": ["x", 3]}, "response 2: found a number"),
        ({"responses": ["x", {"txt": "y"}]}, "response 2: found an object"),
        ({"responses": ["x", "y" * 1_000_001]}, "1,000,001 characters"),
        ({"responses": ["x", "a\x00b"]}, "NUL character"),
        ({"responses": ["x", "\ud83d"]}, "half of a surrogate pair at character 1"),
        ({"prompt": ""}, "the user's turn is empty"),
        ({"prompt": []}, "'prompt' must be a text or a list of messages"),
        ({"prompt": None}, "'prompt' must be a text or a list of messages"),
        ({"prompt": [{"role": "user"}]}, "message 1: found an object"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "a role is one of system, user, assistant"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "it must end with the user's turn"),
        ({"ranking": "A1>A9"}, "A9 does not exist; the responses are A1 to A3"),
        ({"ranking": 3}, "a ranking is"),
        ({"rankings": [{"annotator": "lin"}]}, "ranking 1: found an object"),
        ({"rankings": [{"annotator": "lin", "ranking": "A1>A2"}] * 2}, "two decisions by 'lin'"),
        ({"rankings": [{"ranking": "A1>A2", "order": [1, 1, 2]}]}, "'order' must hold each of 1 to 3 once"),
        ({"rankings": [{"ranking": "A1>A2", "order": [1, "2", None]}]}, "'order' must hold each of 1 to 3 once"),
        ({"rankings": [{"ranking": "A1>A2", "order": [True, 2, 3]}]}, "'order' must hold each of 1 to 3 once"),
        ({"rankings": [{"ranking": "A1>A2", "seconds": -1}]}, "'seconds' must be a number"),
        ({"rankings": [{"ranking": "A1>A2", "seconds": float("inf")}]}, "'seconds' must be a number"),
        ({"rankings": [{"ranking": "A1>A2", "revision": 0}]}, "'revision' must be a whole number"),
        ({"rankings": [{"ranking": "A1>A2", "created_at": "yesterday"}]}, "'created_at' must be an ISO 8601 time"),
        ({"rankings": "A1>A2"}, "'rankings' is a text; it must be a list"),
        ({"set_aside": [{"status": "lost"}]}, "'skipped' or 'flagged'"),
        ({"id": "x" * 201}, "at most 200"),
        ({"id": "a\nb"}, "'id' holds a control character"),
        ({"id": 1.5}, "'id' is a number; it must be text"),
        ({"metadata": []}, None),
        ({"metadata": {"x": "a literal \\u0000 is harmless"}}, None),
        (
            {
                "rankings": [{"annotator": "lin", "ranking": "A1"}],
                "set_aside": [{"annotator": "lin", "status": "skipped"}],
            },
            "two decisions by 'lin'",
        ),
        ({"metadata": ["x"]}, "'metadata' is a list; it must be an object"),
        ({"metadata": {"x": float("nan")}}, "the metadata is no valid JSON"),
        ({"metadata": {"x": "\x00"}}, "the metadata holds a NUL character"),
        ({"metadata": {"x": "\ud800"}}, "half of a surrogate pair"),
    ],
)
def test_a_broken_row_is_refused_with_place_and_rule(change: dict[str, Any], found: str | None) -> None:
    if found is None:
        read_record(ROW | change, where="prompts.jsonl:17")
        return
    with pytest.raises(BadInput) as refusal:
        read_record(ROW | change, where="prompts.jsonl:17")
    message = str(refusal.value)
    assert message.startswith("prompts.jsonl:17: ")
    assert found in message
    assert "\n" not in message


@pytest.mark.parametrize("row", [None, [], "text", 3, {}, {"prompt": "x"}, {"responses": ["x", "y"]}])
def test_what_is_no_row_is_refused(row: object) -> None:
    with pytest.raises(BadInput, match=r"^f:1: "):
        read_record(row, where="f:1")


def test_scoring_takes_a_single_response() -> None:
    assert read_record(ROW | {"responses": ["one"]}, where="f", min_responses=1).responses == (Response("one"),)
