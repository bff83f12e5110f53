"""The Train page: what a run would learn from, its few settings, Start; then the run itself, live, from its files.

No run is held in the page: each tick reads the files of the run whose name the page shows, so a reload, another viewer
or a restarted server sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from annotate import panel, train_settings
from annotate.access import admin, admin_of, chosen_project, projects_of, signed_in
from annotate.exports import MAX_EVAL_FRACTION, eval_fraction_of, export_for
from annotate.material import Material, material_of
from annotate.material_view import check_material, material_view
from annotate.people import People
from annotate.run_view import STAGES, fingerprint, is_merged, result_of, run_address, run_view
from annotate.train_settings import FINISHED_RUNS, SETTINGS, Choice, FinishedRun, Setting, Switch
from data.entities import Project
from data.errors import BadInput, Conflict, NotFound, UserError
from data.exporting import DEFAULT_EVAL_FRACTION
from data.store import Store
from train import jobs

DEMO_MODEL = "smollm2-135m"
FIRST_STAGE = "rm"
TICK_S = 1.0
STOP_GRACE_S = 15.0

_NO_PROJECT = "There is no project yet."
_NO_RUN = "No run yet. Choose a project and press Start; its progress appears here."


class TrainDesk:
    """The handlers of the page."""

    def __init__(
        self, store: Store, workspace: Path, people: People, *, launch: Callable[..., jobs.RunInfo] = jobs.start
    ) -> None:
        """`launch` starts a training."""
        self._launch = launch
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
        return project_list, *self._show(run, opening=True)

    def material(self, request: gr.Request, project_id: object, percent: float, stage: str, *values: Any) -> str:
        """What a run would see; counting 20,000 prompts takes some seconds."""
        if project_id is None:
            return panel.empty(_NO_PROJECT, ("/data", "Create one on the Data page"))
        try:
            project = self._admitted(project_id, request)
            settings = train_settings.sent(stage, values)
            found = self._count(project, eval_fraction_of(percent), settings)
        except UserError as error:
            return panel.note(str(error), "error")
        return material_view(found, stage, settings)

    def start(
        self, request: gr.Request, project_id: object, percent: float, stage: str, *values: Any
    ) -> tuple[Any, ...]:
        """Export the project and start a run on it; `values`: the base model, then those of all stages' settings."""
        try:
            project = self._admitted(project_id, request)
            model, *asked = values
            settings = {**train_settings.read(stage, asked), "model": (model or "").strip()}
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

    def _count(self, project: Project, eval_fraction: float, settings: Mapping[str, Any]) -> Material:
        soft = settings.get("votes") == "soft"
        return material_of(self._store.records(project.id), eval_fraction=eval_fraction, soft=soft)

    def _start(self, project: Project, *, stage: str, settings: dict[str, Any], eval_fraction: float) -> jobs.RunInfo:
        if not settings["model"]:
            raise BadInput("Base model is empty. Choose one of the list, or give a folder or a hub id.")
        self._check_runs(stage, settings)
        busy = next((r.name for r in jobs.list_runs(self._workspace) if r.status.state == "running"), None)
        if busy:
            raise Conflict(f"'{busy}' is still running; one run at a time. Wait for it or stop it.")
        check_material(self._count(project, eval_fraction, settings), project.name, stage, settings)
        # Before anything is written.
        jobs.check(stage, {**settings, "data": self._workspace}, workspace=self._workspace)
        made = export_for(self._store, project, workspace=self._workspace, formats=["trl"], eval_fraction=eval_fraction)
        return self._launch(stage, {**settings, "data": made.path}, workspace=self._workspace)

    def _check_runs(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Refuse a run that the page does not offer: what it names is loaded. Raises BadInput."""
        for own, setting in FINISHED_RUNS:
            value = settings[setting.name] if own == stage else ""
            if value and value not in [address for _, address in self._finished(setting)]:
                raise BadInput(f"{setting.label}: this is no finished run of the list. Choose one, or reload the page.")

    def _run(self, name: str) -> jobs.RunInfo:
        """The run of that name, which is compared with those that are there, never joined to a path."""
        for path in (self._workspace / "runs").glob("*/status.json"):
            if path.parent.name == name:
                return jobs.read_run(path.parent)
        raise NotFound("This run is gone. Reload the page.")

    def _show(self, run: jobs.RunInfo | None, *, opening: bool = False) -> tuple[Any, ...]:
        """The run's half of the page, and the lists that runs appear in: `SHOWN` values."""
        if run is None:
            hidden = gr.update(visible=False)
            shown = (panel.empty(_NO_RUN), "", hidden, hidden, hidden, gr.update(interactive=True), _timer(False))
            return *shown, "", "", self._models(), *self._offered(None, opening=opening)
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
            gr.update() if running else self._models(),
            *self._offered(run, opening=opening),
        )

    def _offered(self, run: jobs.RunInfo | None, *, opening: bool) -> list[Any]:
        """The lists of finished runs. A page that opens chooses the newest; later, the one that has just finished."""
        if run and run.status.state == "running" and not opening:
            return [gr.update() for _ in FINISHED_RUNS]  # a list that changes each second closes
        return [self._list(setting, run, opening=opening) for _, setting in FINISHED_RUNS]

    def _list(self, setting: FinishedRun, run: jobs.RunInfo | None, *, opening: bool) -> Any:
        found = self._finished(setting)
        choices = found if setting.needed else [("None", ""), *found]
        own = str(run.path.resolve()) if run else ""
        just_finished = next((address for _, address in found if address == own), None)
        chosen = found[0][1] if opening and found else just_finished
        if setting.needed and chosen:
            return gr.update(choices=choices, value=chosen)
        return gr.update(choices=choices)

    def _finished(self, setting: FinishedRun) -> list[tuple[str, str]]:
        """Words and folder of each finished run of the setting's stage, the newest first."""
        runs = [r for r in jobs.list_runs(self._workspace) if r.status.stage == setting.stage]
        done = [r for r in runs if r.status.state == "done" and r.has_adapter]
        return [(", ".join(filter(None, (r.name, result_of(r)))), str(r.path.resolve())) for r in done]

    def _models(self) -> Any:
        """What can be trained further: the demo model, the workspace's model folders, its finished SFT runs."""
        folders = sorted(p.parent for p in (self._workspace / "models").glob("[!.]*/config.json"))
        own = [p for p in folders if p.name != DEMO_MODEL and not is_merged(p.name)]
        tuned = [r for r in jobs.list_runs(self._workspace) if r.status.stage == "sft" and r.status.state == "done"]
        return gr.update(
            choices=[
                (DEMO_MODEL, DEMO_MODEL),
                *((p.name, str(p.resolve())) for p in own),
                *((f"{run.name}, from SFT", str(run.path.resolve())) for run in tuned),
            ]
        )


SHOWN = 10 + len(FINISHED_RUNS)
"""How many values show a run: panel, log, Stop, Continue, the question, Start, timer, the run's name, what was seen,
the base models (a finished run may be one), and the lists of finished runs to choose from."""


def build(store: Store, workspace: Path, people: People) -> None:
    """Lay out the page inside the current Blocks."""
    desk = TrainDesk(store, workspace, people)
    panel.panel(panel.heading("Train", "Learn from a project's rankings, on this computer."))
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            project = gr.Dropdown(label="Project", filterable=False, elem_id="project")
            stage = _stages()
            model = gr.Dropdown(
                [DEMO_MODEL],
                value=DEMO_MODEL,
                label="Base model",
                info="A model or finished SFT run of the list, a folder with safetensors, or a hub id",
                allow_custom_value=True,
                elem_id="base-model",
            )
            needed, apart = _needed()
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                percent = _held_out()
                groups, rest = _settings(apart)
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
    fields_of = {**apart, **rest}
    fields = [fields_of[own, setting.name] for own, settings in SETTINGS.items() for setting in settings]
    lists = [fields_of[own, setting.name] for own, setting in FINISHED_RUNS]
    shown = [view, log, stop, resume, question, start, timer, name, seen, model, *lists]
    acted = [message, *shown]
    asked = [project, percent, stage]
    opened = panel.when_opened(desk.open, None, [project, *shown])
    opened.then(desk.material, [*asked, *fields], material)
    columns = {**needed, **groups}
    stage.input(_only_of(columns), stage, list(columns.values()), **panel.QUICK)
    counted = [project.input, percent.release, stage.input, *(f.input for f in fields if isinstance(f, gr.Dropdown))]
    counted.append(fields_of["ppo", "per_device_train_batch_size"].blur)
    gr.on(counted, desk.material, [*asked, *fields], material)
    start.click(desk.start, [*asked, model, *fields], acted, show_progress_on=message)
    timer.tick(desk.tick, [name, seen], shown, **panel.QUICK)
    stop.click(lambda: gr.update(visible=True), None, question, **panel.QUICK)
    keep.click(lambda: gr.update(visible=False), None, question, **panel.QUICK)
    sure.click(desk.stop, name, acted, show_progress_on=question)
    resume.click(desk.resume, name, acted, show_progress_on=message)


def _stages() -> gr.Radio:
    return gr.Radio(
        [(label, name) for name, label in STAGES.items()],
        value=FIRST_STAGE,
        label="What to train",
        info="SFT imitates the best responses, a reward model scores responses, DPO prefers what people prefer, PPO "
        "writes by itself and learns from a reward model's scores",
        elem_id="stage",
    )


def _held_out() -> gr.Slider:
    return gr.Slider(
        0,
        100 * MAX_EVAL_FRACTION,
        value=100 * DEFAULT_EVAL_FRACTION,
        step=1,
        label="Held out, %",
        info="Share of the prompts kept for the evaluation at the end",
    )


_Fields = dict[tuple[str, str], Any]
"""Each setting's field, by stage and name."""
_Columns = dict[tuple[str, str], gr.Column]
"""What is shown for one stage only, by the stage and where it stands."""


def _needed() -> tuple[_Columns, _Fields]:
    """What a stage cannot start without, beside its base model; the other settings have defaults."""
    columns: _Columns = {}
    fields: _Fields = {}
    for stage, setting in FINISHED_RUNS:
        if setting.needed:
            with gr.Column(visible=stage == FIRST_STAGE) as columns[stage, setting.name]:
                fields[stage, setting.name] = _field(stage, setting)
    return columns, fields


def _settings(apart: Container[tuple[str, str]]) -> tuple[_Columns, _Fields]:
    """The other settings of each stage in a column of their own, one column shown."""
    columns: _Columns = {}
    fields: _Fields = {}
    for stage, settings in SETTINGS.items():
        own = [setting for setting in settings if (stage, setting.name) not in apart]
        with gr.Column(visible=stage == FIRST_STAGE, elem_id=f"{stage}-settings") as columns[stage, "settings"]:
            with gr.Row():
                fields |= {(stage, s.name): _field(stage, s) for s in own if not isinstance(s, Switch)}
            fields |= {(stage, s.name): _field(stage, s) for s in own if isinstance(s, Switch)}  # narrow in a row
    return columns, fields


def _field(stage: str, setting: Setting) -> Any:
    value = train_settings.default_of(stage, setting.name)
    words: dict[str, Any] = {"label": setting.label, "info": setting.info, "elem_id": f"{stage}-{setting.name}"}
    if isinstance(setting, FinishedRun):
        none = [] if setting.needed else [("None", "")]
        return gr.Dropdown(none, value=None if setting.needed else "", filterable=False, min_width=300, **words)
    if isinstance(setting, Choice):
        return gr.Dropdown(list(setting.options), value=value, filterable=False, min_width=300, **words)
    if isinstance(setting, Switch):
        return gr.Checkbox(value, **words)
    return gr.Number(value, minimum=setting.least, precision=0 if setting.whole else None, min_width=190, **words)


def _only_of(columns: _Columns) -> Callable[[str], list[Any]]:
    """A handler that shows the columns of the chosen stage."""
    return lambda chosen: [gr.update(visible=stage == chosen) for stage, _ in columns]


def _timer(active: bool) -> Any:
    return gr.update(active=active)


def _to_models(run: jobs.RunInfo) -> str:
    text = "Try it on the Models page" if run.status.stage == "rm" else "See it on the Models page"
    return f'<p class="more">{panel.link(run_address(run), text)}</p>'
