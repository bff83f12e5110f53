"""`python -m data`: import files into a project, export it as a dataset folder, list the projects.

The result goes to standard output, everything else to standard error. Exit 0: done, 2: bad input, 1: our fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.exporting import AGGREGATES, EXPORT_FORMATS, export_dataset
from data.formats import FORMATS
from data.importing import import_files
from data.store import Store

INTERRUPTED = 130
_IMPORT_EXAMPLE = """\
examples:
  python -m data import answers.jsonl --project cooking --dry-run
  python -m data import first.csv second.csv --project cooking

formats (told from the content where --format is left out):
  native  one JSON object a line: {"prompt": "...", "responses": ["...", "..."], "ranking": "A2>A1"}
  csv     a table: prompt,response_1,response_2,...[,ranking][,annotator][,id]; other columns become metadata
  oasst   Open-Assistant message trees; each turn with two or more ranked replies becomes one prompt
"""
_EXPORT_EXAMPLE = """\
example:
  python -m data export --project cooking --format trl --out var/exports/cooking --eval-fraction 0.1
  python -m train rm --model smollm2-135m --data var/exports/cooking --output var/runs/cooking-rm
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a done import must not fail at a terminal without emoji
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except UserError as error:
        print("error:", _one_line(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough of it. What is left in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data", description="Import, export and list ranked prompts.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_import(commands)
    _add_export(commands)
    listing = _add_command(commands, "projects", "list the projects with their counts", "")
    listing.set_defaults(run=_projects)
    return parser


def _add_import(commands: Any) -> None:
    command = _add_command(
        commands,
        "import",
        "add prompts, responses and rankings from files to a project: all of them, or none",
        _IMPORT_EXAMPLE,
    )
    command.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="UTF-8 files; each may have its own format"
    )
    command.add_argument("--project", required=True, metavar="P", help="project to add to; made if it does not exist")
    command.add_argument("--format", metavar="F", help=f"{', '.join(FORMATS)}; told from the content by default")
    command.add_argument("--dry-run", action="store_true", help="check and report only, change nothing")
    command.set_defaults(run=_import)


def _add_export(commands: Any) -> None:
    command = _add_command(
        commands, "export", "write a project as a dataset folder: rankings, pairs, manifest and card", _EXPORT_EXAMPLE
    )
    command.add_argument("--project", required=True, metavar="P", help="project to export")
    command.add_argument(
        "--format", required=True, action="append", metavar="F", help=f"trainer format: {', '.join(EXPORT_FORMATS)}"
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder, or an earlier export")
    command.add_argument(
        "--aggregate", default="each", metavar="A", help=f"how several annotators count: {', '.join(AGGREGATES)}"
    )
    command.add_argument(
        "--eval-fraction",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the prompts for evaluation, chosen by hash (default 0: no eval split)",
    )
    command.add_argument("--force", action="store_true", help="replace the export of another project")
    command.set_defaults(run=_export)


def _add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--workspace", type=Path, default=Path("var"), metavar="DIR", help="folder of the store (default var)"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    return command


@contextmanager
def _store(arguments: argparse.Namespace) -> Iterator[Store]:
    store = Store.open(arguments.workspace, url=os.environ.get("DATABASE_URL"))
    try:
        yield store
    finally:
        store.close()


def _import(arguments: argparse.Namespace) -> None:
    with _store(arguments) as store:
        report = import_files(
            store,
            arguments.project,
            arguments.files,
            format=arguments.format,
            dry_run=arguments.dry_run,
            progress=True,
        )
    print(_json(report.as_json()) if arguments.json else report)


def _export(arguments: argparse.Namespace) -> None:
    with _store(arguments) as store:
        manifest = export_dataset(
            store,
            store.project(arguments.project),
            formats=arguments.format,
            out=arguments.out,
            aggregate=arguments.aggregate,
            eval_fraction=arguments.eval_fraction,
            force=arguments.force,
            progress=True,
        )
    print(_json(manifest) if arguments.json else _export_summary(manifest, arguments.out))
    if not manifest["pairs"]["exported"]:
        print("Note: no pair to train on yet; rank some prompts first.", file=sys.stderr)


def _export_summary(manifest: Mapping[str, Any], out: Path) -> str:
    counts, pairs = manifest["counts"], manifest["pairs"]
    lines = [
        f"Exported {pairs['exported']:,} pairs of {counts['rankings']:,} rankings to {out}.",
        f"  prompts     {counts['prompts']:,}, {counts['prompts_without_ranking']:,} of them without a ranking",
    ]
    lines += [f"  {name:<12}{s['pairs']:,} pairs of {s['prompts']:,} prompts" for name, s in manifest["splits"].items()]
    left_out = {reason.replace("_", " "): n for reason, n in pairs["left_out"].items() if n}
    return "\n".join([*lines, *(f"  left out    {n:,} pairs: {reason}" for reason, n in left_out.items())])


def _projects(arguments: argparse.Namespace) -> None:
    with _store(arguments) as store:
        rows = [{"name": p.name, **vars(store.counts(p.id))} for p in store.projects()]
    if arguments.json:
        print(_json(rows))
        return
    for row in rows:
        print(
            f"{row['name']}: {row['prompts']:,} prompts, {row['ranked_prompts']:,} ranked, {row['rankings']:,} rankings"
        )
    if not rows:
        print("There is no project yet; import a file to make one.", file=sys.stderr)


def _one_line(message: str) -> str:
    """What a file may have put into a message (line breaks, terminal codes) is shown, not obeyed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


if __name__ == "__main__":
    sys.exit(main())
