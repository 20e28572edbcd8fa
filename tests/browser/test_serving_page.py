"""The page of `llmsys serve` in a real browser: a chat, the engine at work, the keyboard, both themes, no network."""

import os
import time

import pytest

from tests.browser.lab import HERE, QUIET, browser, missing

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from llmsys.serving.telemetry.events import Arrived
from tests.serving.server.running import Running, serving, tiny_model

pytestmark = pytest.mark.slow
IDLE = "!document.getElementById('send').disabled"


def until(page, expression: str, seconds: float = 30) -> None:
    """Waits until it is true in the page. (Playwright's own way is an eval, which the page's policy forbids.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} is not true in time"
        page.wait_for_timeout(30)


@pytest.fixture(scope="module")
def chromium():
    if lacking := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this test: {lacking}")
        pytest.skip(lacking)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser(), args=list(QUIET))
        yield launched
        launched.close()


@pytest.fixture
def open_page(chromium):
    """Opens the page of a server; at the end nothing may have gone wrong in it, nor been asked of anybody else."""
    contexts, complaints = [], []

    def opened(running: Running, theme: str = "light", *, closed: bool = False):
        context = chromium.new_context(color_scheme=theme, viewport={"width": 1200, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: complaints.append(request.url) if elsewhere(request.url) else None)

        def elsewhere(url: str) -> bool:
            return not url.startswith((running.url, "data:"))

        page.goto(running.url)
        if not closed:
            until(page, "document.getElementById('model').textContent === 'tiny'")
        return page

    yield opened
    for context in contexts:
        context.close()
    # Chromium notes each request that was refused, and those of a page that outlives its server.
    expected = "Failed to load resource: the server responded", "net::ERR_CONNECTION_REFUSED"
    assert [each for each in complaints if not any(words in each for words in expected)] == []


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def said(page) -> list[str]:
    return page.locator(".said span").all_inner_texts()


def test_a_conversation_and_the_engine_at_work(model, open_page):
    with serving(model) as running:
        page = open_page(running)
        assert page.locator("#running").inner_text() == "0" and page.locator("#ttft").inner_text() == "–"
        page.get_by_label("Most tokens").fill("20")
        page.get_by_label("Your message").fill("<b>Hello</b>")
        page.keyboard.press("Enter")
        until(page, IDLE)
        first = said(page)
        assert len(first) == 2 and first[0] == "<b>Hello</b>", "text is text"
        assert first[1], "the model has said something"
        page.get_by_label("Your message").fill("And now?")
        page.get_by_role("button", name="Send").click()
        until(page, f"{IDLE} && document.querySelectorAll('.said').length === 4")
        asked = [each.prompt_tokens for each in running.engine.events if isinstance(each, Arrived)]
        assert asked[1] > asked[0] + len("And now?") + 20, "what was said before goes along"

        # The engine: what it shows is what it did, and it goes on while an answer comes.
        until(page, "document.getElementById('ttft').textContent.includes('ms')")
        until(page, "document.getElementById('tpot').textContent.split('ms').length === 3")  # when an answer has ended
        until(page, "document.getElementById('blocks').textContent === '0 of 399'")
        assert int(page.locator("#steps").inner_text().replace(",", "")) <= running.engine.metrics.totals.steps
        page.get_by_label("Most tokens").fill("300")
        running.slow(0.02)
        page.get_by_label("Your message").fill("Go on")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('running').textContent === '1'")
        until(page, "document.getElementById('meter').value > 0")
        assert "now 1 running" in page.locator("#history").get_attribute("aria-label")

        # Stop hangs up, and its blocks are free; what was said until then stays.
        page.get_by_role("button", name="Stop").click()
        running.wait_until_empty()
        until(page, IDLE)
        assert said(page)[-1] and running.engine.metrics.totals.aborted == 1
        page.get_by_role("button", name="New conversation").click()
        assert said(page) == [] and page.get_by_text("Nothing has been said yet.").is_visible()


def test_what_goes_wrong_is_said_and_the_question_is_not_lost(model, open_page):
    with serving(model) as running:
        page = open_page(running)
        page.get_by_label("Your message").fill("a" * 700)
        page.keyboard.press("Enter")
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert "at most 599 tokens" in alert.inner_text()
        assert page.get_by_label("Your message").input_value() == "a" * 700 and said(page) == []


def test_a_key_is_asked_for_and_kept(model, open_page):
    with serving(model, api_key="secret") as running:
        page = open_page(running, closed=True)
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use this key").click()
        until(page, "document.getElementById('model').textContent === 'tiny'")
        assert not page.get_by_label("API key").is_visible()
        page.reload()
        until(page, "document.getElementById('model').textContent === 'tiny'")
        page.get_by_label("Most tokens").fill("4")
        page.get_by_label("Your message").fill("Hello")
        page.keyboard.press("Enter")
        until(page, f"{IDLE} && document.querySelectorAll('.said').length === 2")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_in_both_themes_and_usable_by_keyboard(model, open_page, theme):
    with serving(model) as running:
        page = open_page(running, theme)
        page.get_by_label("Most tokens").fill("5")
        page.get_by_label("Your message").fill("Hello")
        page.keyboard.press("Enter")
        until(page, f"{IDLE} && document.querySelectorAll('.said').length === 2")
        page.evaluate("problem('It failed.')")
        found = page.evaluate((HERE / "contrast.js").read_text(encoding="utf-8"), "body")
        assert len(found) > 25 and [each for each in found if each[1] < 4.5] == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (theme == "light")

        page.get_by_label("Your message").focus()
        reached = []
        for _ in range(8):
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            page.keyboard.press("Tab")
        assert reached[:5] == ["text", "send", "new", "temperature", "most"] and "A" in reached
        nameless = """[...document.querySelectorAll("button, input, textarea, meter, svg, [role=log]")].filter(e =>
            !(e.labels?.length || e.ariaLabel || e.textContent.trim()))"""
        assert page.evaluate(f"{nameless}.map(e => e.id)") == []
        page.set_viewport_size({"width": 360, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "a telephone need not scroll sideways"
        )


def test_nothing_of_another_place_may_be_loaded(model):
    with serving(model) as running:
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            answer = running.get(path)
            assert answer.status_code == 200 and answer.headers["content-type"] == f"{kind}; charset=utf-8"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "http://" not in answer.text and "https://" not in answer.text and "innerHTML" not in answer.text
