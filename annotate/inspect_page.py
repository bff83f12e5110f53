"""The Inspect page: one response that PPO wrote, token by token, from the files that its run keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from annotate import panel
from annotate.access import admin
from annotate.people import People
from annotate.run_view import run_address
from annotate.token_strip import SHADES, numbers_view, scale_of, strip_view
from data.errors import NotFound, UserError
from data.store import Store
from train import jobs

FIRST_SHADE = "advantage"

_NO_RUN = (
    "No run of PPO yet. Train a reward model, then PPO with it; what it writes appears here, step by step, each token "
    "with its numbers."
)
_NO_ROLLOUTS = (
    "No run of PPO has finished a step yet. What it writes appears here after the first one, unless it was started "
    "with --inspect_steps 0."
)

Shown = tuple[Any, Any, Any, str]
"""The lists of runs, steps and responses, and the response itself."""


class InspectDesk:
    """The handlers of the page. What it sends may be anything: each name is looked for among those that are there."""

    def __init__(self, workspace: Path, people: People) -> None:
        self._workspace = workspace
        self._people = people

    def open(self, name: str, step: str, response: str, shade: str, request: gr.Request) -> Shown:
        """The page as it opens: the run, step and response of its address, else the latest run's last step."""
        try:
            admin(self._people, request)
            runs = self._runs()
            if not runs:
                return _nothing(self._why_nothing())
            run = self._run(name) if name else runs[0]
            return self._show(run, step=_number(step), response=_number(response) or 0, shade=shade, runs=runs)
        except UserError as error:
            return _nothing(panel.note(str(error), "error"))

    def choose_run(self, name: str, shade: str, request: gr.Request) -> Shown:
        """Another run: its last step."""
        return self.choose_response(name, None, 0, shade, request)

    def choose_step(self, name: str, step: object, shade: str, request: gr.Request) -> Shown:
        """Another step: its first response."""
        return self.choose_response(name, step, 0, shade, request)

    def choose_response(self, name: str, step: object, response: object, shade: str, request: gr.Request) -> Shown:
        """Another response, or another number to colour by."""
        try:
            admin(self._people, request)
            return self._show(self._run(name), step=_number(step), response=_number(response) or 0, shade=shade)
        except UserError as error:
            return gr.skip(), gr.skip(), gr.skip(), panel.note(str(error), "error")

    def _show(
        self,
        run: jobs.RunInfo,
        *,
        step: int | None,
        response: int,
        shade: str,
        runs: Sequence[jobs.RunInfo] | None = None,
    ) -> Shown:
        kept = jobs.rollout_steps(run.path)
        step = kept[-1] if step is None and kept else step
        if step not in kept:
            raise NotFound(f"{run.name} keeps no rollouts of step {step}. Choose another step.")
        rollouts = jobs.rollouts(run.path, step)
        overview = rollouts.overview()
        if not 0 <= response < len(overview):
            raise NotFound(f"Step {step} has {panel.counted(len(overview), 'response')}. Choose one of the list.")
        runs = self._runs() if runs is None else runs
        return (
            gr.update(choices=[r.name for r in runs], value=run.name),
            gr.update(choices=kept[::-1], value=step),
            gr.update(choices=[(_label(n, row), n) for n, row in enumerate(overview)], value=response),
            _view(run, rollouts, overview[response], response=response, shade=shade),
        )

    def _runs(self) -> list[jobs.RunInfo]:
        """The runs with something to look at, newest first."""
        return [r for r in jobs.list_runs(self._workspace) if jobs.rollout_steps(r.path)]

    def _run(self, name: str) -> jobs.RunInfo:
        for run in self._runs():
            if run.name == name:
                return run
        raise NotFound("This run is gone, or keeps no rollouts. Reload the page.")

    def _why_nothing(self) -> str:
        begun = any(run.status.stage == "ppo" for run in jobs.list_runs(self._workspace))
        return panel.empty(_NO_ROLLOUTS if begun else _NO_RUN, ("/train", "Go to the Train page"))


def build(store: Store, workspace: Path, people: People) -> None:
    """Lay out the page inside the current Blocks."""
    desk = InspectDesk(workspace, people)
    panel.panel(panel.heading("Inspect", "What PPO wrote, and what each token of it was worth."))
    with gr.Row():
        run = gr.Dropdown(label="Run", filterable=False, scale=2, min_width=200, elem_id="inspect-run")
        step = gr.Dropdown(label="Step", filterable=False, scale=1, min_width=110, elem_id="inspect-step")
        response = gr.Dropdown(label="Response", filterable=False, scale=3, min_width=320, elem_id="inspect-response")
    shade = gr.Radio(
        [(s.label, name) for name, s in SHADES.items()], value=FIRST_SHADE, label="Colour by", elem_id="shade"
    )
    view = panel.panel(elem_id="response")
    shown = [run, step, response, view]
    run.input(desk.choose_run, [run, shade], shown, **panel.QUICK)
    step.input(desk.choose_step, [run, step, shade], shown, **panel.QUICK)
    gr.on([response.input, shade.input], desk.choose_response, [run, step, response, shade], shown, **panel.QUICK)
    # What to show is named in the page's address, so that it can be linked to; only the browser knows that address.
    named = gr.Textbox(visible=False), gr.Textbox(visible=False), gr.Textbox(visible=False)
    asked = (
        "(run, step, response, shade) => { const at = new URLSearchParams(window.location.search); "
        "return [...['run', 'step', 'response'].map(name => at.get(name) ?? ''), shade]; }"
    )
    panel.when_opened(desk.open, [*named, shade], shown, js=asked)


def _nothing(view: str) -> Shown:
    """Lists that offer nothing."""
    empty = gr.update(choices=[], value=None)
    return empty, empty, empty, view


def _number(value: object) -> int | None:
    """A number that the page or its address names."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _label(number: int, row: Mapping[str, Any]) -> str:
    """A response in the list."""
    cut = "" if row["finished"] else ", cut off"
    return f"{number}: reward {row['score']:+.2f}, {panel.counted(row['tokens'], 'token')}{cut}"


def _view(run: jobs.RunInfo, rollouts: jobs.Rollouts, summary: Mapping[str, Any], *, response: int, shade: str) -> str:
    """One response: what is true of the whole, the prompt, the strip, the numbers."""
    chosen = SHADES.get(shade, SHADES[FIRST_SHADE])
    tokens = rollouts.tokens(response)
    scale = scale_of(rollouts.numbers(chosen.name), chosen.center)
    still = "" if run.status.state != "running" else panel.note("This run goes on. Reload the page for newer steps.")
    prompt = "".join(_message(message) for message in rollouts.prompt_of(response))
    parts = [
        still,
        panel.facts(_facts(summary, kl_coef=rollouts.kl_coef, tokens=tokens)),
        panel.title("Prompt"),
        prompt,
        panel.title("Response"),
        strip_view(tokens, chosen, scale),
        panel.fold("All numbers", numbers_view(tokens)),
        f'<p class="more">{panel.link(run_address(run), "The whole run on the Models page")}</p>',
    ]
    return "".join(parts)


def _facts(summary: Mapping[str, Any], *, kl_coef: float, tokens: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    ended = "ended by itself" if summary["finished"] else "cut off at the longest length"
    rows = [("Reward", f"{summary['score']:+.3f}")]
    if summary["gold"] is not None:
        rows.append(("Second judge", f"{summary['gold']:+.3f}, only measured"))
    total = sum(token["reward"] for token in tokens)
    return [
        ("Prompt", str(summary["prompt_id"])),
        *rows,
        ("KL", f"{summary['kl']:+.3f} nats from the reference, each taken off with weight {kl_coef:g}"),
        ("After penalties", f"{total:+.3f}, the sum of the rewards of its tokens"),
        ("Length", f"{panel.counted(summary['tokens'], 'token')}, {ended}"),
    ]


def _message(message: Mapping[str, str]) -> str:
    role = "" if message["role"] == "user" else f'<span class="quiet">{panel.escaped(message["role"])}</span>'
    return f'<div class="said">{role}<p>{panel.escaped(jobs.visible_lines(message["content"]))}</p></div>'
