"""How fast prompts come in and go out, and how long an annotator waits, beside bare sqlite3 writing the same rows.

python -m benchmarks.store --rows 20000 --json
DATABASE_URL=postgresql+psycopg://… python -m benchmarks.store --json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.environment import environment
from data.entities import Project, Submission
from data.records import PromptRecord, read_record, write_record
from data.store import Store

RESPONSES = 4
TEXT = "A plain answer of some hundred characters, as an assistant might give it to a short question. " * 4


def records(rows: int) -> Iterator[PromptRecord]:
    """Ranked prompts of about 1.6 KB each."""
    for i in range(rows):
        responses = [f"{TEXT} {i} {k}" for k in range(RESPONSES)]
        row = {"id": f"p{i}", "prompt": f"Question {i}?", "responses": responses, "ranking": "A2>A1=A3|A4"}
        yield read_record(row, where=f"row {i}")


def bare_sqlite_s(rows: int, path: Path) -> float:
    """Seconds for the standard library to write the same prompts, responses and ranks, without rules or indexes."""
    connection = sqlite3.connect(path)
    for table in ("prompt (a, b)", "response (a, b, c)", "rank (a, b, c)"):
        connection.execute(f"CREATE TABLE {table}")
    began = time.perf_counter()
    for i, record in enumerate(records(rows)):
        connection.execute("INSERT INTO prompt VALUES (?, ?)", (i, record.prompt[0].content))
        connection.executemany(
            "INSERT INTO response VALUES (?, ?, ?)", [(i, k, r.text) for k, r in enumerate(record.responses)]
        )
        connection.executemany(
            "INSERT INTO rank VALUES (?, ?, ?)", [(i, n, r) for n, r in record.rankings[0].ranking.ranks.items()]
        )
    connection.commit()
    connection.close()
    return time.perf_counter() - began


def measure(rows: int, submits: int, url: str) -> dict[str, object]:
    """One case: import, export, then one annotator at work at the end of the list."""
    with tempfile.TemporaryDirectory() as folder:
        bare_s = bare_sqlite_s(rows, Path(folder) / "bare.db")
        store = Store.open(Path(folder), url=url or None)
        project = store.create_project(f"bench-{time.time_ns()}")
        began = time.perf_counter()
        store.add_prompts(project.id, records(rows))
        import_s = time.perf_counter() - began
        began = time.perf_counter()
        with (Path(folder) / "out.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(write_record(r), ensure_ascii=False) + "\n" for r in store.records(project.id))
        export_s = time.perf_counter() - began
        next_ms, submit_ms = annotate(store, project, submits)
        store.close()
    return {
        "database": "postgresql" if url.startswith("postgres") else "sqlite",
        "rows": rows,
        "import_rows_per_s": round(rows / import_s),
        "export_rows_per_s": round(rows / export_s),
        "bare_ratio": round(bare_s / import_s, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "next_ms": round(statistics.median(next_ms), 2),
        "submit_ms": round(statistics.median(submit_ms), 2),
        "submit_p95_ms": round(statistics.quantiles(submit_ms, n=20)[-1], 2),
    }


def annotate(store: Store, project: Project, submits: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each next and each submit of one annotator."""
    person = store.ensure_annotator("bench")
    next_ms, submit_ms = [], []
    for i in range(submits):
        began = time.perf_counter()
        task = store.next_task(project.id, person.id)
        next_ms.append((time.perf_counter() - began) * 1000)
        assert task is not None
        key = f"bench-{project.id}-{time.time_ns()}-{i}"
        began = time.perf_counter()
        store.submit(person.id, Submission(task.prompt_id, task.revision, key, "ranked", "A2>A1=A3|A4", 5.0))
        submit_ms.append((time.perf_counter() - began) * 1000)
    return next_ms, submit_ms


def main() -> None:
    """Print a line per case, and one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000], help="prompts per case")
    parser.add_argument("--submits", type=int, default=300, help="rankings by one annotator after the import")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    args = parser.parse_args()
    cases = []
    for rows in args.rows:
        cases.append(measure(rows, min(args.submits, rows), os.environ.get("DATABASE_URL", "")))
        if not args.json:
            print(cases[-1])
    print(json.dumps({"cases": cases, "environment": environment()}))


if __name__ == "__main__":
    main()
