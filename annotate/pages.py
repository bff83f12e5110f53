"""The web app: every page in one Gradio app, mounted behind the gate beside the plain routes."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request
from gradio.components.navbar import Navbar
from starlette.middleware.cors import CORSMiddleware

from annotate import data_page, inspect_page, models_page, rank_page, train_page
from annotate.exports import ExportDesk
from annotate.guard import Gate, GuardedBlocks
from annotate.people import LocalPerson, People
from annotate.routes import RankingDesk, answer_mistakes_in_words
from data.store import Store

MAX_UPLOAD = "200mb"
UPLOADS_KEPT_S = (3600, 3600)  # looked through each hour; what is older than an hour goes
MAX_SESSIONS = 500  # a session is kept per page load, about 20 KB each


@dataclass(frozen=True)
class Page:
    """A page of the app; `path` is empty for the first one, `role` is what opens it."""

    title: str
    path: str
    role: str
    build: Callable[[Store, Path, People], None]


# A new page is one line here. Its `build` lays out components and wires handlers that take a `gr.Request`.
PAGES = (
    Page("Rank", "", "annotator", rank_page.build),
    Page("Data", "data", "admin", data_page.build),
    Page("Train", "train", "admin", train_page.build),
    Page("Models", "models", "admin", models_page.build),
    Page("Inspect", "inspect", "admin", inspect_page.build),
)
PAGE_ROLES = {page.path: page.role for page in PAGES}

# No web font: the bundled ones lack letters in bold, and the system's are there already.
_THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "Noto Sans Mono", "monospace"],
).set(
    # The default grey is too pale to read (contrast below 4.5).
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
)
_STYLE = """
/* Gradio clips its container, which would keep the ranking bar from sticking to the bottom of the window. */
.gradio-container { overflow: visible !important; }
.gradio-container nav a { color: var(--body-text-color); }
footer { display: none !important; }
"""


def build_app(store: Store, workspace: Path, *, people: People | None = None) -> FastAPI:
    """The app to serve. Without `people` it belongs to the local person."""
    people = people or LocalPerson(store)

    def name_of_signed_in(request: Request) -> str | None:
        person = people.signed_in(request)
        return person.name if person else None

    app = build_routes(store, workspace, people)

    async def mount() -> None:
        gr.mount_gradio_app(
            app,
            _all_pages(store, workspace, people),
            path="/",
            auth_dependency=name_of_signed_in,
            theme=_THEME,
            css=_STYLE,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SSR mode is not supported")  # nobody asked for it
        asyncio.run(mount())  # without a running event loop, Gradio opens some of its own and never closes them
    return app


def build_routes(store: Store, workspace: Path, people: People) -> FastAPI:
    """The gate and the plain routes, without the pages."""
    app = FastAPI(title="Rankwise", docs_url=None, redoc_url=None, openapi_url=None)
    answer_mistakes_in_words(app)
    app.include_router(RankingDesk(store, people).router())
    app.include_router(ExportDesk(store, workspace, people).router())
    app.add_middleware(CORSMiddleware, allow_origins=[])  # in place of Gradio's, which reflects any origin
    app.add_middleware(Gate, people=people, page_roles=PAGE_ROLES)
    return app


def _all_pages(store: Store, workspace: Path, people: People) -> GuardedBlocks:
    first, *others = PAGES
    pages = GuardedBlocks(
        people=people, page_roles=PAGE_ROLES, title="Rankwise", analytics_enabled=False, delete_cache=UPLOADS_KEPT_S
    )
    with pages:
        Navbar(main_page_name=first.title)
        first.build(store, workspace, people)
    for page in others:
        with pages.route(page.title, page.path):
            Navbar(main_page_name=first.title)
            page.build(store, workspace, people)
    pages.state_session_capacity = MAX_SESSIONS
    pages.queue(default_concurrency_limit=None, status_update_rate=5)
    return pages
