"""The Train page: what a run would learn from, its few settings, Start; then the run itself, live, from its files.

No run is held in the page: each tick reads the files of the run whose name the page shows, so a reload, another viewer
or a restarted server sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from annotate import panel
from annotate.access import admin, admin_of, chosen_project, projects_of, signed_in
from annotate.exports import MAX_EVAL_FRACTION, eval_fraction_of, export_for
from annotate.material import Material, material_of
from annotate.people import People
from annotate.run_view import STAGES, fingerprint, run_address, run_view
from data.entities import Project
from data.errors import BadInput, Conflict, NotFound, UserError
from data.exporting import DEFAULT_EVAL_FRACTION
from data.store import Store
from train import jobs

DEMO_MODEL = "smollm2-135m"
TICK_S = 1.0
STOP_GRACE_S = 15.0

_NO_PROJECT = "There is no project yet."
_NO_RUN = "No run yet. Choose a project and press Start; its progress appears here."


@dataclass(frozen=True)
class Setting:
    """A number the page asks for; `name` is the one that training knows it under."""

    name: str
    label: str
    info: str
    default: float
    least: float
    whole: bool = True


SETTINGS = (
    Setting("num_train_epochs", "Epochs", "Passes over the data; more than one tends to overfit", 1, 0, whole=False),
    Setting("max_steps", "Max steps", "Stop after so many steps; 0 goes by epochs", 0, 0),
    Setting("learning_rate", "Learning rate", "Peak rate; lower it if the loss jumps", 2e-4, 0, whole=False),
    Setting("lora_r", "LoRA rank", "Size of what is learned on top of the base", 16, 1),
    Setting("per_device_train_batch_size", "Prompts per step", "More is steadier and needs more memory", 4, 1),
    Setting("max_length", "Max length", "Prompt with response, in tokens; longer prompts lose their start", 1024, 8),
    Setting("seed", "Seed", "The same seed gives the same run", 42, 0),
)


class TrainDesk:
    """The handlers of the page."""

    def __init__(self, store: Store, workspace: Path, people: People) -> None:
        self._store = store
        self._workspace = workspace
        self._people = people

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """The page as it opens: projects, the newest one chosen, models, and the running or latest run."""
        projects = projects_of(self._store, self._people, signed_in(self._people, request))
        runs = jobs.list_runs(self._workspace)
        run = next((r for r in runs if r.status.state == "running"), runs[0] if runs else None)
        chosen = projects[0].id if projects else None
        project_list = gr.update(choices=[(p.name, p.id) for p in projects], value=chosen)
        return project_list, gr.update(choices=_models(self._workspace)), *self._show(run)

    def material(self, project_id: object, percent: float, request: gr.Request) -> str:
        """What a run would see; counting 20,000 prompts takes some seconds."""
        if project_id is None:
            return panel.empty(_NO_PROJECT, ("/data", "Create one on the Data page"))
        try:
            project = self._admitted(project_id, request)
            return _material(self._count(project, eval_fraction_of(percent)))
        except UserError as error:
            return panel.note(str(error), "error")

    def start(
        self, request: gr.Request, project_id: object, stage: str, model: str, percent: float, *values: float | None
    ) -> tuple[Any, ...]:
        """Export the project and start a run on it; `values` in the order of `SETTINGS`."""
        try:
            project = self._admitted(project_id, request)
            settings: dict[str, Any] = dict(
                _setting(setting, value) for setting, value in zip(SETTINGS, values, strict=True)
            )
            settings["model"] = (model or "").strip()
            run = self._start(project, stage=stage, settings=settings, eval_fraction=eval_fraction_of(percent))
        except UserError as error:
            return panel.note(str(error), "error"), *[gr.skip()] * SHOWN
        return "", *self._show(run)

    def tick(self, name: str, seen: str, request: gr.Request) -> Any:
        """What changed since the page last looked; nothing at all when nothing did."""
        try:
            signed_in(self._people, request)
            run = self._run(name)
        except UserError:  # its folder was removed
            return self._show(None)
        return gr.skip() if fingerprint(run) == seen else self._show(run)

    def stop(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """Stop the run; it saves a checkpoint first."""
        try:
            admin(self._people, request)
            run = self._run(name)
            jobs.stop(run.path, grace_s=STOP_GRACE_S)
        except UserError as error:
            return panel.note(str(error), "error"), *[gr.skip()] * SHOWN
        return "", *self._show(self._run(name))

    def resume(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """Continue a stopped or failed run from its newest checkpoint."""
        try:
            admin(self._people, request)
            run = jobs.resume(self._run(name).path, workspace=self._workspace)
        except UserError as error:
            return panel.note(str(error), "error"), *[gr.skip()] * SHOWN
        return "", *self._show(run)

    def _admitted(self, project_id: object, request: gr.Request) -> Project:
        project = chosen_project(self._store, project_id)
        admin_of(self._people, request, project)
        return project

    def _count(self, project: Project, eval_fraction: float) -> Material:
        return material_of(self._store.records(project.id), eval_fraction=eval_fraction)

    def _start(self, project: Project, *, stage: str, settings: dict[str, Any], eval_fraction: float) -> jobs.RunInfo:
        if not settings["model"]:
            raise BadInput("Base model is empty. Choose one of the list, or give a folder or a hub id.")
        busy = next((r.name for r in jobs.list_runs(self._workspace) if r.status.state == "running"), None)
        if busy:
            raise Conflict(f"'{busy}' is still running; one run at a time. Wait for it or stop it.")
        _check_material(self._count(project, eval_fraction), project)
        jobs.check(
            stage, {**settings, "data": self._workspace}, workspace=self._workspace
        )  # before anything is written
        made = export_for(self._store, project, workspace=self._workspace, formats=["trl"], eval_fraction=eval_fraction)
        return jobs.start(stage, {**settings, "data": made.path}, workspace=self._workspace)

    def _run(self, name: str) -> jobs.RunInfo:
        """The run of that name, which is compared with those that are there, never joined to a path."""
        for path in (self._workspace / "runs").glob("*/status.json"):
            if path.parent.name == name:
                return jobs.read_run(path.parent)
        raise NotFound("This run is gone. Reload the page.")

    def _show(self, run: jobs.RunInfo | None) -> tuple[Any, ...]:
        """The run's half of the page: `SHOWN` values."""
        if run is None:
            hidden = gr.update(visible=False)
            return panel.empty(_NO_RUN), "", hidden, hidden, hidden, gr.update(interactive=True), _timer(False), "", ""
        running = run.status.state == "running"
        return (
            run_view(run) + (_to_models(run) if run.has_adapter and not running else ""),
            jobs.log_tail(run.path),
            gr.update(visible=running),
            gr.update(visible=run.can_resume),
            gr.update() if running else gr.update(visible=False),  # a tick must not close the question
            gr.update(interactive=not running),
            _timer(running),
            run.name,
            fingerprint(run),
        )


SHOWN = 9
"""How many values show a run: panel, log, Stop, Continue, the question, Start, timer, the run's name, what was seen."""


def build(store: Store, workspace: Path, people: People) -> None:
    """Lay out the page inside the current Blocks."""
    desk = TrainDesk(store, workspace, people)
    panel.panel(panel.heading("Train", "Learn from a project's rankings, on this computer."))
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            project = gr.Dropdown(label="Project", filterable=False, elem_id="project")
            stage = gr.Radio([(label, name) for name, label in STAGES.items()], value="rm", label="What to train")
            model = gr.Dropdown(
                [DEMO_MODEL],
                value=DEMO_MODEL,
                label="Base model",
                info="From the list, or a folder with safetensors, or a hub id",
                allow_custom_value=True,
                elem_id="base-model",
            )
            with gr.Accordion("Settings", open=False):
                percent, settings = _settings()
            material = panel.panel(elem_id="material")
            start = gr.Button("Start", variant="primary", elem_id="start")
            message = panel.panel(elem_id="start-message")
        with gr.Column(scale=3, min_width=320):
            view = panel.panel(panel.empty(_NO_RUN), elem_id="run")
            with gr.Row():
                stop = gr.Button("Stop", variant="stop", visible=False, scale=0, min_width=110, elem_id="stop")
                resume = gr.Button("Continue", visible=False, scale=0, min_width=110, elem_id="continue")
            with gr.Row(visible=False, equal_height=True) as question:
                panel.panel(panel.note("Stop this run? It saves where it is, and can be continued.", "warning"))
                sure = gr.Button("Stop it", variant="stop", scale=0, min_width=110, elem_id="stop-sure")
                keep = gr.Button("Keep running", scale=0, min_width=170, elem_id="keep")
            with gr.Accordion("Log", open=False):
                log = gr.Textbox(show_label=False, lines=12, max_lines=12, autoscroll=True, interactive=False)
    timer = gr.Timer(TICK_S, active=False)
    name, seen = gr.Textbox(visible=False), gr.Textbox(visible=False)
    shown = [view, log, stop, resume, question, start, timer, name, seen]
    acted = [message, *shown]
    opened = panel.when_opened(desk.open, None, [project, model, *shown])
    opened.then(desk.material, [project, percent], material)
    gr.on([project.input, percent.release], desk.material, [project, percent], material)
    start.click(desk.start, [project, stage, model, percent, *settings], acted, show_progress_on=message)
    timer.tick(desk.tick, [name, seen], shown, **panel.QUICK)
    stop.click(lambda: gr.update(visible=True), None, question, **panel.QUICK)
    keep.click(lambda: gr.update(visible=False), None, question, **panel.QUICK)
    sure.click(desk.stop, name, acted, show_progress_on=question)
    resume.click(desk.resume, name, acted, show_progress_on=message)


def _settings() -> tuple[gr.Slider, list[gr.Number]]:
    percent = gr.Slider(
        0,
        100 * MAX_EVAL_FRACTION,
        value=100 * DEFAULT_EVAL_FRACTION,
        step=1,
        label="Held out, %",
        info="Share of the prompts kept for the evaluation at the end",
    )
    with gr.Row():
        numbers = [_number(setting) for setting in SETTINGS]
    return percent, numbers


def _number(setting: Setting) -> gr.Number:
    return gr.Number(
        setting.default,
        label=setting.label,
        info=setting.info,
        minimum=setting.least,
        precision=0 if setting.whole else None,
        min_width=190,
        elem_id=setting.name,
    )


def _models(workspace: Path) -> list[tuple[str, str]]:
    """The demo model, then the model folders of the workspace."""
    folders = sorted(p.parent for p in (workspace / "models").glob("[!.]*/config.json"))
    return [(DEMO_MODEL, DEMO_MODEL), *((p.name, str(p.resolve())) for p in folders if p.name != DEMO_MODEL)]


def _timer(active: bool) -> Any:
    return gr.update(active=active)


def _setting(setting: Setting, value: float | None) -> tuple[str, float]:
    """Raises BadInput for an empty field; training's own rules check the number."""
    if value is None:
        raise BadInput(f"{setting.label} is empty. Give a number, such as {setting.default:g}.")
    return setting.name, int(value) if setting.whole else value


def _check_material(material: Material, project: Project) -> None:
    if material.pairs:
        return
    if material.held_out_pairs:
        raise BadInput(f"Every ranked prompt of '{project.name}' is held out. Lower the share held out, or rank more.")
    raise BadInput(f"There is nothing to learn from in '{project.name}' yet: no response is ranked above another one.")


def _to_models(run: jobs.RunInfo) -> str:
    return f'<p class="more">{panel.link(run_address(run), "Try it on the Models page")}</p>'


def _material(material: Material) -> str:
    if not material.pairs and not material.held_out_pairs:
        return panel.empty("Nothing to learn from yet: no response is ranked above another one.", ("/", "Rank prompts"))
    left = [
        (material.ties, "Tied pairs", "used as ties"),
        (material.unranked, "Unranked pairs", "left out: nobody compared them"),
        (material.without_ranking, "Prompts not ranked", "left out"),
    ]
    held_out = (
        f"{panel.counted(material.held_out_pairs, 'pair')} of {panel.counted(material.held_out_prompts, 'prompt')}"
    )
    return panel.title("This run would see") + panel.facts(
        [
            (
                "To learn from",
                f"{panel.counted(material.pairs, 'pair')} of {panel.counted(material.prompts, 'prompt')}",
            ),
            ("Held out", held_out),
            *((name, f"{count:,}, {what}") for count, name, what in left if count),
        ]
    )
