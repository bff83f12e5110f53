"""Reading each file format, good and bad."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadInput, UserError
from data.importing import inspect_file, read_records
from data.records import Message, PromptRecord, Response

GOOD = {"id": "good", "prompt": "Why?", "responses": ["Because.", "No idea."]}


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> list[PromptRecord]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(path, **options))


def refusal(folder: Path, name: str, content: str | bytes, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, name, content, **options)
    return str(caught.value)


def test_native_rows_are_read_in_order_with_everything_they_say(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "苹果是什么？",
            "responses": ["一种水果", {"text": "公司", "model": "m", "id": "r2"}],
            "ranking": "A1>A2",
        },
        {"id": "two", "prompt": [{"role": "user", "content": "Hi"}], "responses": ["a", "b"], "topic": "greeting"},
    ]
    first, second = read(tmp_path, "rows.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert first.prompt == (Message("user", "苹果是什么？"),)
    assert first.responses == (Response("一种水果"), Response("公司", "m", "r2"))
    assert [(r.annotator, str(r.ranking)) for r in first.rankings] == [("imported", "A1>A2")]
    assert (second.id, second.metadata) == ("two", {"topic": "greeting"})


@pytest.mark.parametrize(
    "character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "👩‍👩‍👧", "\u202eאב", "\r", "\ufeff"]
)
def test_unusual_characters_in_a_text_survive_and_split_no_line(tmp_path: Path, character: str) -> None:
    text = f"a{character}b"
    row = {"prompt": text, "responses": [text, "other"]}
    [record] = read(tmp_path, "rows.jsonl", json.dumps(row, ensure_ascii=False))
    assert record.prompt[0].content == record.responses[0].text == text


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    assert len(read(tmp_path, "bom.jsonl", b"\xef\xbb\xbf" + line + b"\r\n\r\n")) == 1
    table = "prompt,response_1,response_2\r\nq,a,b\r\n"
    [record] = read(tmp_path, "bom.csv", b"\xef\xbb\xbf" + table.encode())
    assert [r.text for r in record.responses] == ["a", "b"]


def test_a_table_gives_responses_ranking_annotator_id_and_metadata(tmp_path: Path) -> None:
    table = (
        "Topic,prompt,response_1,response_2,response_3,ranking,annotator,id\n"
        'maths,"What is 1+1, ""exactly""?",2,"It is\r\ntwo, I think",,A1>A2,lin,q1\n'
        "\n"
        ",Why?,a,b,c,,,\n"
    )
    first, second = read(tmp_path, "table.csv", table)
    assert first.prompt[0].content == 'What is 1+1, "exactly"?'
    assert [r.text for r in first.responses] == ["2", "It is\r\ntwo, I think"]
    assert [(r.annotator, str(r.ranking)) for r in first.rankings] == [("lin", "A1>A2")]
    assert (first.id, first.metadata) == ("q1", {"Topic": "maths"})
    assert len(second.responses) == 3
    assert second.rankings == ()


@pytest.mark.parametrize(("name", "separator"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.txt", ","), ("t", "\t")])
def test_the_separator_of_a_table_is_found(tmp_path: Path, name: str, separator: str) -> None:
    rows = [["Prompt", " response_1", "RESPONSE_2"], ["q", "a,b" if separator != "," else "ab", "c"]]
    [record] = read(tmp_path, name, "\n".join(separator.join(row) for row in rows))
    assert [r.text for r in record.responses] == [rows[1][1], "c"]


def test_cells_longer_than_the_csv_module_allows_by_default_are_read(tmp_path: Path) -> None:
    [record] = read(tmp_path, "long.csv", f"prompt,response_1,response_2\nq,{'x' * 300_000},b\n")
    assert len(record.responses[0].text) == 300_000


def test_rows_of_one_prompt_by_several_annotators_become_one_record(tmp_path: Path) -> None:
    rows = ["q,a,b,A1>A2,lin", "other,a,b,,", "q,a,b,A2>A1,kim", "q,a,b,A2>A1,kim"]
    table = "\n".join(["prompt,response_1,response_2,ranking,annotator", *rows])
    first, second = read(tmp_path, "people.csv", table)
    assert [(r.annotator, str(r.ranking)) for r in first.rankings] == [("lin", "A1>A2"), ("kim", "A2>A1")]
    assert second.prompt[0].content == "other"
    report = inspect_file(tmp_path / "people.csv")
    assert (report.prompts, report.rankings, report.without_ranking) == (2, 2, 1)
    assert report.left_out == {"rows that repeat an earlier row": 1}


def tree(*replies: dict[str, Any], **extra: Any) -> str:
    prompt = {"message_id": "m0", "text": "Hello?", "role": "prompter", "replies": list(replies), **extra}
    return json.dumps({"message_tree_id": "m0", "prompt": prompt})


def reply(name: str, rank: int | None, *replies: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {
        "message_id": name,
        "text": f"text {name}",
        "role": "assistant",
        "rank": rank,
        "replies": [*replies],
        **extra,
    }


def test_each_turn_with_two_ranked_replies_becomes_a_prompt_with_its_conversation(tmp_path: Path) -> None:
    follow_up = {"message_id": "m1", "text": "And?", "role": "prompter", "replies": [reply("c", 1), reply("d", 0)]}
    content = tree(reply("a", 1, follow_up), reply("b", 0), reply("e", None), reply("f", 1), lang="en")
    first, second = read(tmp_path, "trees.jsonl", content)
    assert (first.id, first.metadata) == ("m0", {"lang": "en"})
    assert [(r.text, r.id) for r in first.responses] == [("text a", "a"), ("text b", "b"), ("text f", "f")]
    assert [(r.annotator, str(r.ranking)) for r in first.rankings] == [("oasst", "A2>A1=A3")]
    assert second.prompt == (Message("user", "Hello?"), Message("assistant", "text a"), Message("user", "And?"))
    assert str(second.rankings[0].ranking) == "A2>A1"
    left_out = inspect_file(tmp_path / "trees.jsonl").left_out
    assert left_out == {"replies without a rank, or deleted, beside ranked ones": 1}


def test_turns_that_cannot_be_ranked_are_counted(tmp_path: Path) -> None:
    content = "\n".join([tree(reply("a", 0)), tree(reply("b", 0), reply("c", 1), message_id="m9")])
    assert [record.id for record in read(tmp_path, "trees.jsonl", content)] == ["m9"]
    left_out = inspect_file(tmp_path / "trees.jsonl").left_out
    assert left_out == {"prompter turns with fewer than 2 ranked replies": 1}
    message = refusal(tmp_path, "none.jsonl", tree(reply("a", 0)))
    assert "no prompt that can be ranked (1 prompter turns" in message


def test_the_open_assistant_file_gives_212_ranked_prompts(public_data: Path) -> None:
    records = list(read_records(public_data / "oasst" / "en_100_tree.jsonl"))
    sizes = Counter(len(record.responses) for record in records)
    assert len(records) == 212
    assert sum(count for k, count in sizes.items() if k >= 3) == 155
    assert (min(sizes), max(sizes)) == (2, 9)
    assert all([r.annotator for r in record.rankings] == ["oasst"] for record in records)
    assert all(len(record.rankings[0].ranking.ranks) == len(record.responses) for record in records)


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("cvalues-zh/responsibility_prompts.jsonl", "prompts without responses cannot be ranked"),
        ("finegrained/dev_feedback_first250.json", "one JSON list"),
        ("label-tool/input_file.json", "the line ends inside a JSON value"),
        ("label-tool/output_result.tsv", "the columns are id, query, history, rank1"),
        ("ymcui-zh/QA.md", "fits no format"),
        ("stories260k/model.safetensors", "is not UTF-8"),
    ],
)
def test_public_files_in_other_formats_get_a_helpful_sentence(public_data: Path, file: str, found: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_records(public_data / file))
    assert f"{file}:1: " in str(caught.value)
    assert found in str(caught.value)


def test_with_no_least_number_of_responses_prompts_alone_are_read(tmp_path: Path) -> None:
    [native] = read(tmp_path, "p.jsonl", '{"prompt": "q"}', min_responses=0)
    [table] = read(tmp_path, "p.csv", "prompt\nq\n", format="csv", min_responses=0)
    assert native.responses == table.responses == ()
    [single] = read(tmp_path, "s.jsonl", '{"prompt": "q", "responses": ["a"]}', min_responses=1)
    assert len(single.responses) == 1


def test_a_given_format_is_not_guessed(tmp_path: Path) -> None:
    assert "no tree" in refusal(tmp_path, "rows.jsonl", json.dumps(GOOD), format="oasst")
    assert "--format xml" in refusal(tmp_path, "rows.jsonl", json.dumps(GOOD), format="xml")


def test_line_breaks_in_a_file_name_stay_out_of_the_message(tmp_path: Path) -> None:
    assert "\n" not in refusal(tmp_path, "a\nb\x1b.jsonl", "{")


def test_a_message_may_call_the_file_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "upload-7f3a"
    path.write_text("{")
    with pytest.raises(BadInput, match=r"^mine\.jsonl:1: "):
        list(read_records(path, name="mine.jsonl"))


def test_a_mistake_on_the_last_line_is_found_before_the_first_record_comes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"prompt": 1}')
    with pytest.raises(BadInput, match=r"rows\.jsonl:2: "):
        next(read_records(path))
