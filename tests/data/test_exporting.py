"""Dataset folders: every pair there or counted, the same bytes twice, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.entities import Project
from data.errors import BadInput, NotFound, UserError
from data.exporting import export_dataset, pairs_of, read_dataset
from data.importing import import_file
from data.records import PromptRecord, read_record, write_record
from data.store import Store
from tests.data.conftest import Desk

ROWS = [
    {"id": "p1", "prompt": "One?", "responses": ["a", "b", "c", "d"], "ranking": "A2>A1=A3", "annotator": "lin"},
    {"id": "p2", "prompt": "Two?", "responses": ["a", "b", "a"], "ranking": "A1>A2>A3", "annotator": "lin"},
    {"id": "p3", "prompt": "Three?", "responses": ["a", "b"]},
    {
        "id": "p4",
        "prompt": "Four?",
        "responses": ["a", "b"],
        "rankings": [{"annotator": "lin", "ranking": "A2|A1"}, {"annotator": "kim", "ranking": "A1>A2"}],
        "set_aside": [{"annotator": "bo", "status": "flagged", "reason": "odd"}],
        "metadata": {"lang": "en"},
    },
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def export(store: Store, project: Project, out: Path, **options: Any) -> dict[str, Any]:
    return export_dataset(store, project, formats=["trl"], out=out, **options)


@pytest.fixture
def project(store: Store) -> Project:
    project = store.create_project("demo", guidelines="Prefer *true* answers.\n\nThen short ones.")
    store.add_prompts(project.id, [read_record(row, where="test") for row in ROWS])
    return project


def test_the_pairs_of_the_example_are_exactly_these(store: Store, project: Project, tmp_path: Path) -> None:
    export(store, project, tmp_path / "out")
    found = [
        (r["prompt_id"], r["chosen"][0]["content"], r["rejected"][0]["content"], r["margin"], r["weight"])
        for r in rows_of(tmp_path / "out" / "trl" / "train.jsonl")
    ]
    assert found == [
        ("p1", "b", "a", 1.0, 0.5),
        ("p1", "b", "c", 1.0, 0.5),
        ("p2", "a", "b", 1.0, 0.5),
        ("p2", "b", "a", 1.0, 0.5),
        ("p4", "b", "a", 1.0, 1.0),
        ("p4", "a", "b", 1.0, 1.0),
    ]


def test_the_manifest_counts_everything(store: Store, project: Project, tmp_path: Path) -> None:
    manifest = export(store, project, tmp_path / "out")
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pairs"] == {
        "total": 6 + 3 + 1 + 1,
        "exported": 6,
        "left_out": {"tie": 1, "unranked": 3, "identical_texts": 1},
    }
    assert manifest["counts"] == {
        "prompts": 4,
        "responses": 11,
        "rankings": 4,
        "annotators": 2,
        "rankings_with_ties": 1,
        "rankings_partial": 1,
        "rankings_with_bar": 1,
        "prompts_without_ranking": 1,
        "skipped": 0,
        "flagged": 1,
    }
    assert manifest["responses_per_prompt"] == {"2": 2, "3": 1, "4": 1}
    assert manifest["splits"] == {"train": {"prompts": 4, "rankings": 4, "pairs": 6}}
    assert (manifest["schema_version"], manifest["project"], manifest["aggregate"]) == (1, "demo", "each")


def test_the_manifest_names_every_file_with_its_hash(store: Store, project: Project, tmp_path: Path) -> None:
    manifest = export(store, project, tmp_path / "out", eval_fraction=0.5)
    files = tree(tmp_path / "out")
    names = {"rankings.jsonl", "README.md", "trl/train.jsonl", "trl/eval.jsonl"}
    assert set(files) == {*names, "manifest.json"}
    assert set(manifest["files"]) == names
    for name, facts in manifest["files"].items():
        assert facts["sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert facts["bytes"] == len(files[name])
        if name.endswith(".jsonl"):
            assert facts["rows"] == files[name].count(b"\n")


def test_exporting_twice_gives_the_same_bytes(store: Store, project: Project, tmp_path: Path) -> None:
    export(store, project, tmp_path / "one", eval_fraction=0.3)
    export(store, project, tmp_path / "two", eval_fraction=0.3)
    export(store, project, tmp_path / "two", eval_fraction=0.3)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["one", "two"], "nothing is left beside them"


def test_train_and_eval_share_no_prompt(store: Store, tmp_path: Path) -> None:
    project = store.create_project("demo")
    rows = [
        {"id": f"p{i}", "prompt": f"Question {i % 30}?", "responses": ["a", f"b{i}"], "ranking": "A1>A2"}
        for i in range(60)
    ]
    store.add_prompts(project.id, [read_record(row, where="test") for row in rows])
    export(store, project, tmp_path / "out", eval_fraction=0.4)
    train, evaluation = (
        {json.dumps(row["prompt"]) for row in rows_of(tmp_path / "out" / "trl" / f"{split}.jsonl")}
        for split in ("train", "eval")
    )
    assert train
    assert evaluation
    assert not train & evaluation
    assert len(train | evaluation) == 30
    dataset = read_dataset(tmp_path / "out", eval_fraction=0.99)
    assert {json.dumps([vars(m) for m in r.prompt]) for r in dataset.records if r.split == "eval"} == evaluation


def implied_pairs(node: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The pairs that the raw ranks of a message tree imply, worked out from the raw JSON alone."""
    conversation = (*before, node["text"])
    replies = [r for r in node["replies"] if r.get("rank") is not None]
    if node["role"] == "prompter" and len(replies) > 1:
        for better in replies:
            for worse in replies:
                if better["rank"] < worse["rank"]:
                    share = 2 / (len(replies) * (len(replies) - 1))
                    distance = float(worse["rank"] - better["rank"])
                    yield conversation, better["text"], worse["text"], distance, round(share, 12)
    for reply in node["replies"]:
        yield from implied_pairs(reply, conversation)


def test_an_open_assistant_export_has_exactly_the_pairs_of_the_raw_ranks(
    store: Store, public_data: Path, tmp_path: Path
) -> None:
    source = public_data / "oasst" / "en_100_tree.jsonl"
    import_file(store, "oasst", source)
    manifest = export(store, store.project("oasst"), tmp_path / "out", eval_fraction=0.1)
    expected = Counter(
        pair for line in source.read_bytes().split(b"\n") if line for pair in implied_pairs(json.loads(line)["prompt"])
    )
    found: Counter[tuple[Any, ...]] = Counter()
    prompts: dict[str, set[str]] = {}
    for split in ("train", "eval"):
        rows = rows_of(tmp_path / "out" / "trl" / f"{split}.jsonl")
        prompts[split] = {json.dumps(row["prompt"]) for row in rows}
        for row in rows:
            roles = [m["role"] for m in row["prompt"]]
            assert roles == ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
            texts = tuple(m["content"] for m in row["prompt"])
            answers = [m["content"] for m in (*row["chosen"], *row["rejected"])]
            found[(texts, *answers, row["margin"], round(row["weight"], 12))] += 1
    assert found == expected
    assert len(prompts["train"] | prompts["eval"]) == 212
    assert not prompts["train"] & prompts["eval"]
    assert manifest["pairs"]["exported"] == manifest["pairs"]["total"] == expected.total()


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
TIME = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))


@st.composite
def rankings_of(draw: st.DrawFn, responses: int, annotator: str) -> dict[str, Any]:
    ranked = draw(st.permutations(range(1, responses + 1)))[: draw(st.integers(1, responses))]
    bar = draw(st.none() | st.integers(0, len(ranked)))
    notation = "|" if bar == 0 else ""
    for place, number in enumerate(ranked, start=1):
        following = "" if place == len(ranked) else draw(st.sampled_from(">="))
        notation += f"A{number}" + ("|" if bar == place else following)
    entry = {"annotator": annotator, "ranking": notation, "created_at": draw(TIME).isoformat()}
    if draw(st.booleans()):
        entry |= {"order": draw(st.permutations(range(1, responses + 1))), "seconds": draw(st.floats(0, 1e6))}
        entry |= {"comment": draw(TEXT), "revision": draw(st.integers(1, 9))}
    return entry


@st.composite
def native_rows(draw: st.DrawFn) -> dict[str, Any]:
    turn = TEXT.filter(str.strip)
    history = [{"role": role, "content": draw(turn)} for role in draw(st.lists(st.sampled_from(["system", "user"])))]
    answers = draw(
        st.lists(TEXT | st.fixed_dictionaries({"text": TEXT, "model": NAME, "id": NAME}), min_size=2, max_size=5)
    )
    people = draw(st.lists(NAME, unique=True, max_size=3))
    row = {
        "prompt": [*history, {"role": "user", "content": draw(turn)}],
        "responses": answers,
        "rankings": [draw(rankings_of(len(answers), name)) for name in people[:2]],
        "metadata": draw(st.dictionaries(TEXT, JSON, max_size=3)),
    }
    if len(people) == 3:
        status, reason, at = draw(st.sampled_from(["skipped", "flagged"])), draw(TEXT), draw(TIME).isoformat()
        row["set_aside"] = [{"annotator": people[2], "status": status, "reason": reason, "created_at": at}]
    return row


def canonical(row: dict[str, Any]) -> PromptRecord:
    """The record as the notation writes it: tied numbers ascend."""
    return read_record(write_record(read_record(row, where="test")), where="test")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=st.lists(native_rows(), min_size=1, max_size=3))
def test_whatever_is_imported_comes_back_from_an_export_equal(
    store: Store, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    project = store.create_project(f"project {len(store.projects())}")
    records = [canonical({"id": f"p{n}", **row}) for n, row in enumerate(rows)]
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_text("\n".join(json.dumps(write_record(record)) for record in records))
    import_file(store, project.name, path)
    manifest = export(store, project, out, eval_fraction=0.5, force=True)

    assert [replace(record, split="") for record in read_dataset(out).records] == records
    assert len((out / "rankings.jsonl").read_text().splitlines()) == len(records)
    pairs = manifest["pairs"]
    assert pairs["total"] == pairs["exported"] + sum(pairs["left_out"].values())
    exported = rows_of(out / "trl" / "train.jsonl") + rows_of(out / "trl" / "eval.jsonl")
    assert len(exported) == pairs["exported"]
    assert all(row["chosen"] != row["rejected"] for row in exported)


@given(row=native_rows())
@settings(max_examples=50, deadline=None)
def test_the_kept_pairs_of_a_ranking_weigh_one(row: dict[str, Any]) -> None:
    record = read_record(row, where="test")
    for entry in record.rankings:
        pairs = pairs_of(record, entry)
        responses = len(record.responses)
        assert len(pairs.kept) + sum(pairs.left_out.values()) == responses * (responses - 1) // 2
        assert not pairs.kept or sum(c.weight for c in pairs.kept) == pytest.approx(1)


def test_a_ranking_made_on_the_page_exports_with_its_shown_order(desk: Desk, tmp_path: Path) -> None:
    desk.rank("A2>A1|A3")
    export(desk.store, desk.project, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    [entry] = dataset.records[0].rankings
    shown = [("one", "two", "three")[number - 1] for number in entry.order]
    first = rows_of(tmp_path / "out" / "trl" / "train.jsonl")[0]
    assert (first["chosen"][0]["content"], first["rejected"][0]["content"]) == (shown[1], shown[0])


def test_a_project_without_rankings_exports_empty_pairs(store: Store, tmp_path: Path) -> None:
    project = store.create_project("empty")
    manifest = export(store, project, tmp_path / "out", eval_fraction=0.1)
    assert (manifest["pairs"]["exported"], manifest["counts"]["prompts"]) == (0, 0)
    assert (tmp_path / "out" / "trl" / "train.jsonl").read_bytes() == b""
    assert "configs:" not in (tmp_path / "out" / "README.md").read_text()
    assert read_dataset(tmp_path / "out").records == ()


def test_the_card_names_what_hubs_look_for(store: Store, project: Project, tmp_path: Path) -> None:
    export(store, project, tmp_path / "out", eval_fraction=0.5)
    card = (tmp_path / "out" / "README.md").read_text()
    header = card.split("---\n")[1].splitlines()
    assert header[:4] == ['pretty_name: "demo"', "license: unknown", "language:", '- "en"']
    assert {"- n<1K", "- human-feedback", "- preference", "- rlhf", "- dpo", "- config_name: trl"} <= set(header)
    assert "| pairs left out: identical texts | 1 |" in card
    assert "> Prefer *true* answers.\n>\n> Then short ones." in card


# Reading back


def test_a_folder_without_eval_split_is_split_when_it_is_read(store: Store, project: Project, tmp_path: Path) -> None:
    export(store, project, tmp_path / "out")
    assert {record.split for record in read_dataset(tmp_path / "out", eval_fraction=0).records} == {"train"}
    assert {record.split for record in read_dataset(tmp_path / "out", eval_fraction=0.999).records} == {"eval"}
    dataset = read_dataset(tmp_path / "out")
    assert dataset.manifest_sha256 == hashlib.sha256((tmp_path / "out" / "manifest.json").read_bytes()).hexdigest()


def test_a_plain_file_is_a_dataset_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    dataset = read_dataset(path)
    assert [record.id for record in dataset.records] == ["p1", "p2", "p3", "p4"]
    assert dataset.manifest_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_flipped_bit_is_refused(store: Store, project: Project, tmp_path: Path) -> None:
    export(store, project, tmp_path / "out")
    path = tmp_path / "out" / "rankings.jsonl"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"rankings.jsonl: not the file that manifest.json describes"):
        read_dataset(tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"kind": "else"}', b"\xff", b"[" * 10_000])
def test_a_damaged_manifest_is_refused(store: Store, project: Project, tmp_path: Path, content: bytes) -> None:
    export(store, project, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_bytes(content)
    with pytest.raises(BadInput, match="not the manifest of a dataset folder"):
        read_dataset(tmp_path / "out")


def test_other_folders_and_later_schemas_are_refused(store: Store, project: Project, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no manifest\.json"):
        read_dataset(tmp_path)
    manifest = export(store, project, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(BadInput, match="schema version 99"):
        read_dataset(tmp_path / "out")


# Where it is written


def test_an_earlier_export_of_the_project_is_replaced_whole(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    export(desk.store, desk.project, out, eval_fraction=0.5)
    desk.rank("A1>A2>A3")
    export(desk.store, desk.project, out)
    assert set(tree(out)) == {"rankings.jsonl", "README.md", "manifest.json", "trl/train.jsonl"}
    assert len(rows_of(out / "trl" / "train.jsonl")) == 3


def test_foreign_folders_and_files_are_never_replaced(store: Store, project: Project, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    mixed = tmp_path / "mixed"
    export(store, project, mixed)
    (mixed / "notes.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (foreign, mixed, file):
        before = tree(tmp_path)
        with pytest.raises(BadInput, match=r"[Cc]hoose a"):
            export(store, project, out, force=True)
        assert tree(tmp_path) == before


def test_the_export_of_another_project_is_replaced_only_by_force(
    store: Store, project: Project, tmp_path: Path
) -> None:
    other = store.create_project("other")
    export(store, project, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(BadInput, match=r"holds the export of project 'demo'.*--force"):
        export(store, other, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert export(store, other, tmp_path / "out", force=True)["project"] == "other"


def test_an_empty_folder_may_be_filled(store: Store, project: Project, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(store, project, tmp_path / "out")["counts"]["prompts"] == 4


@pytest.mark.parametrize("after", [0, 2])
def test_an_export_that_breaks_off_leaves_the_earlier_one(
    store: Store, project: Project, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(store, project, tmp_path / "out")
    before = tree(tmp_path)
    records = list(store.records(project.id))

    def full_disk(_: int) -> Iterator[Any]:
        yield from records[:after]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "records", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        export(store, project, tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be_written_gets_a_sentence(store: Store, project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the export could not be written"):
        export(store, project, tmp_path / "file" / "out")
    with pytest.raises(UserError, match="the export could not be written"):
        export(store, project, tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"formats": ["xml"]}, "--format xml"),
        ({"aggregate": "majority"}, "--aggregate majority"),
        ({"eval_fraction": 1.0}, "--eval-fraction 1.0"),
    ],
)
def test_unknown_choices_are_refused(
    store: Store, project: Project, tmp_path: Path, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(BadInput, match=found):
        export_dataset(store, project, **{"formats": ["trl"], "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_a_copied_folder_is_the_same_dataset(store: Store, project: Project, tmp_path: Path) -> None:
    export(store, project, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    one, two = read_dataset(tmp_path / "out"), read_dataset(tmp_path / "copy")
    assert (one.records, one.manifest_sha256) == (two.records, two.manifest_sha256)
