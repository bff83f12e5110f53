"""The whole loop in a browser: rank, train a reward model, train by DPO, train by PPO, look at every token of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.records import read_record
from data.store import Store
from tests.browser.conftest import Server

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: install requirements-dev.txt")
expect = playwright_api.expect

PATIENCE_MS = 90_000  # a child process loads its libraries in 4 s, in 20 s on a busy machine
PROMPTS = 24

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def filled(workspace: Path) -> Iterator[None]:
    """Prompts that nobody has ranked. A tiny model gains nothing from a second thread."""
    from tests.train.made import rows

    store = Store.open(workspace)
    project = store.create_project("loop", guidelines="More exclamation marks are better.")
    bare = [{name: row[name] for name in ("id", "prompt", "responses")} for row in rows(PROMPTS)]
    store.add_prompts(project.id, [read_record(row, where="loop") for row in bare])
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer model folder whose padding is no end of a response."""
    from tests.train.made import byte_tokenizer, llama_config, save_model

    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    return save_model(llama_config(), tokenizer, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def page(chromium: Any, server: Server) -> Iterator[Any]:
    """One page for the whole walk; every script error and foreign request fails the test."""
    context = chromium.new_context(base_url=server.url, viewport={"width": 1280, "height": 900}, locale="en-GB")
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else wrong.append(r.url))
    yield page
    context.close()
    expect.set_options(timeout=5_000)
    assert wrong == []


def open_train_page(page: Any, stage: str, label: str) -> None:
    """With its settings unfolded."""
    page.goto("/train")
    expect(page.locator("#project input")).not_to_have_value("")
    page.get_by_label(label, exact=True).check()
    page.get_by_role("button", name="Settings").click()
    expect(page.locator(f"#{stage}-max_steps input")).to_be_visible()


def start(page: Any, stage: str, **settings: object) -> None:
    """Fill in settings and start; the run is seen to run, then to be done."""
    for name, value in settings.items():
        field = page.locator(f"#{stage}-{name} input")
        expect(field).to_be_visible()
        page.wait_for_timeout(300)  # the fields slide in, and take nothing before
        field.fill(str(value))
        field.press("Tab")
        expect(field).to_have_value(str(value))
    page.locator("#start").click()
    expect(page.locator("#run .badge")).to_have_text("running")
    expect(page.locator("#run .badge")).to_have_text("done")


def test_from_rankings_to_reward_model_to_dpo_to_ppo_to_its_tokens(page: Any, workspace: Path, tiny: Path) -> None:
    rank_all(page)
    store = Store.open(workspace)
    assert store.counts(store.project("loop").id).rankings == PROMPTS
    store.close()

    open_train_page(page, "ppo", "PPO")
    expect(page.locator("#material")).to_contain_text("choose a finished one under Scored by, or train one first")
    page.locator("#start").click()
    expect(page.locator("#start-message")).to_contain_text("choose a finished one under Scored by")

    train_reward_model(page, tiny)
    train_by_dpo(page, tiny)
    train_by_ppo(page, tiny)
    (run,) = (workspace / "runs").glob("ppo-*")
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    look_at_its_tokens(page, run)

    page.goto("/models")
    expect(page.locator("#runs tbody tr")).to_have_count(3)
    expect(page.locator("#runs")).to_contain_text(re.compile(r"reward [+-]\d\.\d\d → [+-]\d\.\d\d"))


def rank_all(page: Any) -> None:
    """With the keyboard, as a person would who counts exclamation marks."""
    page.goto("/?project=loop")
    page.wait_for_selector(".board:not([data-state=loading])")
    for _ in range(PROMPTS):
        asked = page.locator(".conversation").inner_text()
        marks = [text.count("!") for text in page.locator(".card").all_inner_texts()]
        for place in sorted(range(len(marks)), key=lambda i: -marks[i]):
            page.keyboard.press(str(place + 1))
        expect(page.locator(".notation")).to_have_value(re.compile(r"(A\d>)+A\d"))
        page.keyboard.press("Enter")
        expect(page.locator(".conversation")).not_to_have_text(asked)
        expect(page.locator("[data-do=submit]")).to_be_enabled()  # before that the board takes no key
    expect(page.locator(".nothing")).to_be_visible()


def train_reward_model(page: Any, tiny: Path) -> None:
    page.get_by_label("Reward model", exact=True).check()
    choose_base(page, tiny)
    expect(page.locator("#material")).to_contain_text("pairs of")
    start(page, "rm", max_steps=25, learning_rate=0.01)
    expect(page.locator("#run")).to_contain_text("Agreement with people")


def train_by_dpo(page: Any, tiny: Path) -> None:
    page.get_by_label("DPO", exact=True).check()
    start(page, "dpo", max_steps=5, learning_rate=0.001)
    expect(page.locator("#run")).to_contain_text("Is it still the model it was?")


def train_by_ppo(page: Any, tiny: Path) -> None:
    """With the reward model that was trained a moment ago, and the same one as second judge."""
    page.get_by_label("PPO", exact=True).check()
    expect(page.locator("#ppo-reward input")).to_have_value(re.compile("^rm-"))
    page.locator("#ppo-gold input").click()
    page.get_by_role("option", name=re.compile("^rm-")).click()
    small = {"per_device_train_batch_size": 4, "max_new_tokens": 12, "num_ppo_epochs": 2, "max_length": 128}
    expect(page.locator("#material")).to_contain_text(re.compile(r"\d+ prompts, ranked or not"))
    start(page, "ppo", **small, max_steps=3, learning_rate=0.001, eval_prompts=4)
    view = page.locator("#run")
    expect(view).to_contain_text("PPO on")
    expect(view).to_contain_text("What it came to")
    expect(view).to_contain_text("The reward")
    expect(view).to_contain_text("What it wrote before and after")
    for title in ("Reward", "Second judge", "KL from the start", "Critic: loss", "Speed, tokens a second"):
        expect(view.locator("figcaption strong", has_text=title).first).to_be_visible()


def look_at_its_tokens(page: Any, run: Path) -> None:
    page.get_by_text("Look at what it wrote, token by token").click()
    expect(page.locator("#inspect-run input")).to_have_value(run.name)
    expect(page.locator("#inspect-step input")).to_have_value("3")
    tokens = page.locator("#response .token")
    expect(tokens.first).to_be_visible()
    from train.rollout_files import file_of, read_rollouts

    rollouts = read_rollouts(file_of(run, 3))
    assert tokens.count() == len(rollouts.tokens(0))
    assert "advantage" in (tokens.first.get_attribute("data-numbers") or "")
    tokens.first.hover()
    shown = tokens.first.evaluate("token => getComputedStyle(token, '::after').content")
    assert f"id {rollouts.tokens(0)[0]['token_id']}" in shown

    page.get_by_label("KL", exact=True).check()
    expect(page.locator("#response")).to_contain_text("KL: more likely than under the reference")
    page.locator("#inspect-response input").click()
    page.get_by_role("option", name=re.compile("^1: reward")).click()
    expect(tokens).to_have_count(len(rollouts.tokens(1)))
    page.locator("#inspect-step input").click()
    page.get_by_role("option", name="1", exact=True).click()
    expect(tokens).to_have_count(len(read_rollouts(file_of(run, 1)).tokens(0)))


def choose_base(page: Any, folder: Path) -> None:
    page.locator("#base-model input").fill(str(folder))
    page.locator("#base-model input").press("Enter")
