"""The Data page: projects and their size, a file's dry run and import, the guidelines, exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from annotate import panel
from annotate.access import admin, admin_of, chosen_project, projects_of, signed_in
from annotate.exports import MAX_EVAL_FRACTION, Export, download_address, eval_fraction_of, export_for, exports_of
from annotate.people import People
from annotate.render import render_markdown
from data.dataset_folder import file_sha256
from data.entities import Counts, Project
from data.errors import BadInput, UserError
from data.exporting import DEFAULT_EVAL_FRACTION, EXPORT_FORMATS
from data.import_report import ImportReport
from data.importing import import_file
from data.store import Store

FILE_TYPES = [".jsonl", ".ndjson", ".json", ".csv", ".tsv"]
MAX_FILE_NAME_CHARS = 200
EXPORTS_SHOWN = 10

_NO_PROJECT = "There is no project yet. Give the first one a name and press Create."
_NO_PROMPTS = "This project has no prompts yet. Choose a file below: prompts with at least two responses each."
_CHOOSE_FILE = (
    'Rows such as {"prompt": "…", "responses": ["…", "…"]}, a table with the columns prompt, response_1, response_2, …,'
    " or Open-Assistant trees. A file is checked first; nothing is written before you press Import."
)
_LEFT_OUT = {
    "tie": "tied by people",
    "unranked": "with an unranked response",
    "identical_texts": "of equal texts",
}


class DataDesk:
    """The handlers of the page. Each asks who sent the event, and answers the user's mistakes in a sentence."""

    def __init__(self, store: Store, workspace: Path, people: People) -> None:
        self._store = store
        self._workspace = workspace
        self._people = people

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """The page as it opens: the projects, and the newest one's view."""
        projects = projects_of(self._store, self._people, signed_in(self._people, request))
        return _project_list(projects, projects[0].id if projects else None), *self._view(*projects[:1])

    def choose(self, project_id: object, request: gr.Request) -> tuple[Any, ...]:
        """Another project."""
        try:
            return self._view(self._admitted(project_id, request))
        except UserError as error:
            return panel.note(str(error), "error"), "", ""

    def create(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """A new project; the one who makes it is its admin."""
        try:
            person = admin(self._people, request)
            project = self._store.create_project(name)
            self._store.grant(project.id, person.id, "admin")
        except UserError as error:
            return gr.skip(), gr.skip(), panel.note(str(error), "error"), gr.skip(), gr.skip()
        projects = projects_of(self._store, self._people, person)
        summary, *others = self._view(project)
        done = panel.note(f"Project '{project.name}' is ready.", "done")
        return "", _project_list(projects, project.id), done + summary, *others

    def check(self, project_id: object, file: str | None, name: str, request: gr.Request) -> tuple[Any, ...]:
        """Dry run: what an import of this file would do. Shows the Import button only when it would do something."""
        if file is None:
            return _nothing_checked()
        try:
            project = self._admitted(project_id, request)
            report = self._import(project, file, name, dry_run=True)
        except UserError as error:
            return panel.note(str(error), "error"), gr.update(visible=False), ""
        useful = bool(report.new_prompts or report.new_rankings)
        button = gr.update(visible=useful, value=f"Import into '{project.name}'")
        return _report(report), button, _ticket(project, file) if useful else ""

    def load(
        self, project_id: object, file: str | None, name: str, ticket: str, request: gr.Request
    ) -> tuple[Any, ...]:
        """Import the file that the dry run saw, into the project it was held against."""
        try:
            project = self._admitted(project_id, request)
            if file is None or ticket != _ticket(project, file):
                raise BadInput("The file or the project changed since the check. Choose the file again.")
            report = self._import(project, file, name, dry_run=False)
        except UserError as error:
            return panel.note(str(error), "error"), gr.update(visible=False), "", gr.skip(), gr.skip()
        return _report(report), gr.update(visible=False), "", None, _summary(self._store.counts(project.id))

    def preview(self, text: str) -> str:
        """The guidelines as annotators will see them."""
        return _rendered(text)

    def save_guidelines(self, project_id: object, text: str, request: gr.Request) -> str:
        """Store the guidelines."""
        try:
            project = self._admitted(project_id, request)
            self._store.set_guidelines(project.id, text, by=admin_of(self._people, request, project).id)
        except UserError as error:
            return panel.note(str(error), "error")
        return panel.note(f"Saved. Annotators of '{project.name}' see them with their next prompt.", "done")

    def export(self, project_id: object, formats: str, eval_percent: float, request: gr.Request) -> tuple[str, str]:
        """Write a dataset folder into the workspace."""
        try:
            project = self._admitted(project_id, request)
            made = export_for(
                self._store,
                project,
                workspace=self._workspace,
                formats=[formats],
                eval_fraction=eval_fraction_of(eval_percent),
            )
        except UserError as error:
            return panel.note(str(error), "error"), gr.skip()
        return _exported(made), _export_list(exports_of(self._workspace, project.name))

    def _admitted(self, project_id: object, request: gr.Request) -> Project:
        project = chosen_project(self._store, project_id)
        admin_of(self._people, request, project)
        return project

    def _import(self, project: Project, file: str, name: str, *, dry_run: bool) -> ImportReport:
        shown = name[:MAX_FILE_NAME_CHARS] or Path(file).name
        return import_file(self._store, project.name, Path(file), dry_run=dry_run, create=False, name=shown)

    def _view(self, project: Project | None = None) -> tuple[str, str, str]:
        """Summary, guidelines, earlier exports."""
        if project is None:
            return panel.empty(_NO_PROJECT), "", ""
        summary = _summary(self._store.counts(project.id))
        exports = _export_list(exports_of(self._workspace, project.name))
        return summary, project.guidelines, exports


def build(store: Store, workspace: Path, people: People) -> None:
    """Lay out the page inside the current Blocks."""
    desk = DataDesk(store, workspace, people)
    panel.panel(panel.heading("Data", "What is ranked: bring prompts in, say how to judge them, take rankings out."))
    with gr.Row():
        project = gr.Dropdown(label="Project", filterable=False, scale=3, min_width=280, elem_id="project")
        name = gr.Textbox(
            label="New project",
            placeholder="Name",
            submit_btn="Create",
            max_lines=1,
            max_length=200,
            scale=2,
            min_width=280,
        )
    summary = panel.panel(elem_id="summary")
    with gr.Tab("Import a file"):
        _import_tab(desk, project, summary)
    with gr.Tab("Guidelines"):
        text = _guidelines_tab(desk, project)
    with gr.Tab("Export"):
        exports = _export_tab(desk, project)
    view = [summary, text, exports]
    panel.when_opened(desk.open, None, [project, *view])
    project.input(desk.choose, project, view, **panel.QUICK)
    name.submit(desk.create, name, [name, project, *view], **panel.QUICK)


def _import_tab(desk: DataDesk, project: gr.Dropdown, summary: gr.HTML) -> None:
    file = gr.File(label="JSON lines, CSV or TSV", file_types=FILE_TYPES, height=150, elem_id="import-file")
    report = panel.panel(panel.note(_CHOOSE_FILE), elem_id="import-report")
    button = gr.Button("Import", variant="primary", visible=False, elem_id="import")
    name, ticket = gr.Textbox(visible=False), gr.Textbox(visible=False)
    checked = [report, button, ticket]
    # Only the browser knows what the user calls the file: on the server its name has been cleaned.
    named = "(project, file, name, ticket) => [project, file, file?.orig_name ?? '', ticket].slice(0, {})"
    triggers = [file.upload, file.clear, project.input]
    gr.on(triggers, desk.check, [project, file, name], checked, js=named.format(3), show_progress_on=report)
    all_of_it = [project, file, name, ticket]
    button.click(desk.load, all_of_it, [*checked, file, summary], js=named.format(4), show_progress_on=report)


def _guidelines_tab(desk: DataDesk, project: gr.Dropdown) -> gr.Textbox:
    with gr.Row():
        text = gr.Textbox(label="Guidelines (Markdown)", lines=14, max_lines=30, scale=1, elem_id="guidelines")
        with gr.Column(scale=1):
            preview = panel.panel(_rendered(""), elem_id="guidelines-preview")
    with gr.Row():
        save = gr.Button("Save guidelines", variant="primary", scale=0, min_width=190)
        saved = panel.panel()
    text.change(desk.preview, text, preview, **panel.QUICK, trigger_mode="always_last")
    save.click(desk.save_guidelines, [project, text], saved, **panel.QUICK)
    gr.on([project.input, text.input], fn=None, js="() => ''", outputs=saved)
    return text


def _export_tab(desk: DataDesk, project: gr.Dropdown) -> gr.HTML:
    with gr.Row():
        formats = gr.Radio(
            list(EXPORT_FORMATS), value="trl", label="Format", info="Pairs as message lists, for trainers"
        )
        percent = gr.Slider(
            0,
            100 * MAX_EVAL_FRACTION,
            value=100 * DEFAULT_EVAL_FRACTION,
            step=1,
            label="Held out, %",
            info="Share of the prompts kept for evaluation; 0 writes one file",
        )
    button = gr.Button("Export", variant="primary", elem_id="export")
    result = panel.panel(elem_id="export-result")
    exports = panel.panel(elem_id="exports")
    button.click(desk.export, [project, formats, percent], [result, exports], show_progress_on=result)
    project.input(fn=None, js="() => ''", outputs=result)
    return exports


def _project_list(projects: list[Project], chosen: int | None) -> Any:
    return gr.update(choices=[(p.name, p.id) for p in projects], value=chosen)


def _ticket(project: Project, file: str) -> str:
    """Names what a dry run saw, so that the import takes exactly that."""
    return f"{project.id} {file_sha256(Path(file))}"


def _nothing_checked() -> tuple[Any, ...]:
    return panel.note(_CHOOSE_FILE), gr.update(visible=False), ""


def _summary(counts: Counts) -> str:
    if not counts.prompts:
        return panel.empty(_NO_PROMPTS)
    return panel.tiles(
        [
            ("prompts", counts.prompts),
            ("responses", counts.responses),
            ("prompts ranked", counts.ranked_prompts),
            ("rankings", counts.rankings),
            ("skipped", counts.skipped),
            ("flagged", counts.flagged),
            ("people", counts.annotators),
        ]
    )


def _report(report: ImportReport) -> str:
    """An import, done or rehearsed: its headline, the prompts by number of responses, the account of all rows."""
    headline, _, _ = str(report).partition("\n")
    changes = report.new_prompts or report.new_rankings
    kind = "info" if report.dry_run or not changes else "done"
    most = max(report.responses_per_prompt.values(), default=1)
    bars = "".join(
        panel.bar(n / most, name=f"{k} responses", value=panel.counted(n, "prompt"))
        for k, n in report.responses_per_prompt.items()
    )
    return panel.note(headline, kind) + panel.facts(_report_rows(report)) + panel.title("Prompts by responses") + bars


def _report_rows(report: ImportReport) -> list[tuple[str, str]]:
    there = [report.prompts_already_there or 0, report.rankings_already_there or 0]
    rows = [
        ("File", f"{', '.join(report.files)} ({', '.join(report.formats)})"),
        ("Prompts", f"{report.prompts:,}" + (f", {there[0]:,} of them there already" if there[0] else "")),
        ("Rankings", f"{report.rankings:,}" + (f", {there[1]:,} of them there already" if there[1] else "")),
        ("To rank", panel.counted(report.without_ranking, "prompt")),
    ]
    if report.annotators:
        shown = [f"{name} ({count:,})" for name, count in list(report.annotators.items())[:10]]
        rest = len(report.annotators) - len(shown)
        rows.append(("Annotators", ", ".join(shown) + (f" and {rest:,} more" if rest else "")))
    if report.skipped or report.flagged:
        rows.append(("Set aside", f"{report.skipped:,} skipped, {report.flagged:,} flagged"))
    return rows + [("Left out", f"{count:,} {what}") for what, count in report.left_out.items()]


def _rendered(text: str) -> str:
    body = render_markdown(text) if text.strip() else '<p class="quiet">The preview appears here.</p>'
    return f'<div class="rendered prose">{body}</div>'


def _exported(made: Export) -> str:
    counts, pairs = made.manifest["counts"], made.manifest["pairs"]
    headline = f"Exported {panel.counted(pairs['exported'], 'pair')} of {panel.counted(counts['rankings'], 'ranking')}."
    rows = [("Folder", str(made.path)), *_split_rows(made.manifest)]
    rows += [
        ("Left out", f"{panel.counted(count, 'pair')} {_LEFT_OUT.get(why, why)}")
        for why, count in pairs["left_out"].items()
        if count
    ]
    if counts["prompts_without_ranking"]:
        rows.append(("Not ranked yet", panel.counted(counts["prompts_without_ranking"], "prompt")))
    download = panel.link(download_address(made), f"Download {made.name}.zip", download=True)
    kind = "done" if pairs["exported"] else "warning"
    return panel.note(headline, kind) + panel.facts(rows) + f'<p class="more">{download}</p>'


def _split_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"train": "To train on", "eval": "Held out"}
    return [
        (names[split], f"{panel.counted(found['pairs'], 'pair')} of {panel.counted(found['prompts'], 'prompt')}")
        for split, found in manifest["splits"].items()
    ]


def _export_list(exports: list[Export]) -> str:
    if not exports:
        return panel.empty("No export of this project yet.")
    rows = [
        (
            panel.escaped(export.name),
            panel.escaped(f"{export.made_at.astimezone():%d %b %Y %H:%M}"),
            f"{export.manifest['counts']['rankings']:,}",
            f"{export.manifest['pairs']['exported']:,}",
            panel.link(download_address(export), "zip", download=True),
        )
        for export in exports[:EXPORTS_SHOWN]
    ]
    return panel.title("Exports of this project") + panel.table(("Name", "Made", "Rankings", "Pairs", ""), rows)
