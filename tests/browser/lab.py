"""JupyterLab in a real browser: the course as a learner has it on the screen.

    with Lab(workspace, scratch=tmp_path, theme="dark") as lab:
        lab.open("02_online_softmax.ipynb")
        lab.run_all()
        lab.edit_cell("02-merge", "def merge(a, b): ...")
        lab.run_cell("02-merge")
        assert "passed" in lab.cell_output("02-merge-check").inner_text()

A server of this interpreter, on a port of its own, with settings, kernels and IPython profile in `scratch`, so that
neither the user's set-up nor an earlier run is seen; headless Chromium, driven by Playwright. Cells go by the ids that
they have in the notebook's file.

To look at a lesson as it will look, in both themes, without a browser on the desk:

    python -m tests.browser.lab lessons/02_online_softmax.ipynb out/       what a learner meets
    python -m tests.browser.lab solutions/02_online_softmax.py out/        the source, before it is built
"""

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.browser.server import THEMES, Server

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run",
         "--disable-component-update", "--disable-sync")  # fmt: skip


def missing() -> str:
    """What the browser tests lack on this machine, in words; empty where nothing is lacking."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    return "" if browser() else "no Chromium here: on Debian, apt install chromium"


def browser() -> str | None:
    """The Chromium on PATH."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Lab:
    """JupyterLab on a workspace, with one browser page. A context manager: closes the browser, stops the server.

    `console_errors` is what the page has complained of so far.
    """

    def __init__(self, workspace: Path, *, scratch: Path, theme: str = "light", width: int = 1280, height: int = 900):
        self.workspace, self.scratch, self.theme = Path(workspace).resolve(), Path(scratch).resolve(), theme
        self.size = {"width": width, "height": height}
        self.console_errors: list[str] = []
        self.notebook: Path | None = None

    def __enter__(self) -> "Lab":
        from playwright.sync_api import sync_playwright

        with contextlib.ExitStack() as opened:
            self._server = Server(self.workspace, self.scratch / "jupyter", self.theme)
            opened.callback(self._server.stop)
            playwright = sync_playwright().start()
            opened.callback(playwright.stop)
            chromium = playwright.chromium.launch(executable_path=browser(), args=list(QUIET))
            opened.callback(chromium.close)
            self.page = chromium.new_page(viewport=self.size)
            self._opened = opened.pop_all()  # from here on, __exit__ closes them
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.console_errors.append(f"uncaught: {error}"))
        return self

    def __exit__(self, *exception) -> None:
        self._opened.close()

    # What a learner does

    def open(self, name: str) -> None:
        """Open a notebook of the workspace and wait for its kernel. Fails where JupyterLab asks for one instead."""
        self.notebook = self.workspace / name
        self.page.goto(self._server.url(f"lab/tree/{name}"))
        self.page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        self.wait_idle()

    def run_all(self, timeout: float = 300) -> None:
        """Run › Run All Cells, by the menu; returns when the last cell is done, or one has ended in an error."""
        self._start(lambda: self._menu("Run", "Run All Cells"))
        self.wait_idle(timeout)

    def run_cell(self, cell: str, timeout: float = 120) -> None:
        """Put the cursor into a cell and press Control-Enter."""
        self._editor(cell).click()
        self._start(lambda: self.page.keyboard.press("Control+Enter"))
        self.wait_idle(timeout)

    def edit_cell(self, cell: str, source: str) -> None:
        """Replace the text of a cell, at the keyboard."""
        self._editor(cell).click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)

    def set_theme(self, theme: str) -> None:
        """Settings › Theme › JupyterLab Light, or Dark."""
        self._menu("Settings", "Theme", THEMES[theme])
        self.page.locator(f"body[data-jp-theme-name='{THEMES[theme]}']").wait_for(state="attached")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")  # it covers the page meanwhile
        self.theme = theme

    def save(self) -> None:
        """Save the notebook, and wait until the file has changed."""
        self.page.keyboard.press("Control+S")
        self.page.locator(".lm-TabBar-tab.jp-mod-current:not(.jp-mod-dirty)").first.wait_for()

    # What a learner sees

    def cell(self, cell: str):
        """A cell on the page (a Playwright locator), by its id."""
        ids = [each.get("id") for each in self._cells()]
        if cell not in ids:
            raise KeyError(f"{self.notebook.name} has no cell {cell!r}; it has {', '.join(map(str, ids))}")
        found = self.page.locator(".jp-NotebookPanel .jp-Notebook .jp-Cell").nth(ids.index(cell))
        found.scroll_into_view_if_needed()
        return found

    def cell_output(self, cell: str):
        """The output area of a cell, as a locator: `.inner_text()`, `.get_by_role("button", name="Next")`."""
        return self.cell(cell).locator(".jp-Cell-outputArea").first

    def screenshot(self, path: str | Path, cell: str | None = None) -> Path:
        """A picture of the page, or of one cell."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        (self.cell(cell) if cell else self.page).screenshot(path=path)
        return Path(path)

    def pages(self, folder: str | Path, prefix: str) -> list[Path]:
        """The whole notebook as pictures, a screenful each, from top to bottom."""
        notebook = self.page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").first
        notebook.evaluate("e => e.scrollTo(0, 0)")
        view, length = notebook.evaluate("e => [e.clientHeight, e.scrollHeight]")
        found = []
        for number, top in enumerate(range(0, max(length - 60, 1), max(view - 60, 1)), start=1):
            notebook.evaluate("(e, top) => e.scrollTo(0, top)", top)
            self.page.wait_for_timeout(150)  # pictures and equations below the fold are painted when they are shown
            path = Path(folder) / f"{prefix}-{number:02}.png"
            notebook.screenshot(path=path)
            found.append(path)
        return found

    def errors(self) -> list[str]:
        """The cells that ended in an error, by id, with what it was. Saves the notebook."""
        self.save()
        return [
            f"{cell['id']}: {output['ename']}: {output['evalue']}"
            for cell in self._cells()
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]

    def hard_to_read(self, least: float = 4.5) -> list[str]:
        """The texts in outputs whose contrast with what is behind them is too low, in the theme that is on."""
        outputs = ".jp-NotebookPanel .jp-OutputArea-output:not([data-mime-type$=stderr])"  # tracebacks are Jupyter's
        found = self.page.evaluate((HERE / "contrast.js").read_text(encoding="utf-8"), outputs)
        if not found:
            return ["no output shows any text: is something lying over the notebook?"]
        return [f"{text!r} has a contrast of {contrast} : 1" for text, contrast in found if contrast < least]

    def wait_idle(self, timeout: float = 120) -> None:
        """Wait until no cell is running or waiting. Raises where a dialog asks something instead."""
        deadline = time.monotonic() + timeout
        quiet = 0
        while quiet < 3:  # the indicator goes idle between two cells, too
            if (dialog := self.page.locator(".jp-Dialog")).count():
                raise AssertionError(f"JupyterLab asks a question: {dialog.first.inner_text()!r}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the notebook is still busy after {timeout:.0f} s")
            state = self.page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator").first
            status = state.get_attribute("data-status") if state.count() else None
            waiting = self.page.locator(".jp-NotebookPanel .jp-InputPrompt", has_text="[*]").count()
            quiet = quiet + 1 if status == "idle" and not waiting else 0
            self.page.wait_for_timeout(100)

    def wait_until(self, condition, timeout: float = 60) -> None:
        """Wait until `condition()` is true. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"that has not happened within {timeout:.0f} s")
            self.page.wait_for_timeout(50)

    def _start(self, action) -> None:
        """Do what starts a cell, and wait until it has begun: before that, the notebook looks idle, too.

        While a page or a kernel is still being set up, JupyterLab forgets what it was asked; so ask again.
        """
        before = self._prompts()
        for attempt in range(3):
            action()
            try:
                return self.wait_until(lambda: self._prompts() != before, timeout=20)
            except TimeoutError:
                if attempt == 2:
                    raise

    def _prompts(self) -> list[str]:
        """What stands before the cells: [ ], [*] for one that waits or runs, and after each run a new number."""
        return self.page.locator(".jp-NotebookPanel .jp-InputPrompt").all_inner_texts()

    def _cells(self) -> list[dict]:
        return json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]

    def _editor(self, cell: str):
        return self.cell(cell).locator(".cm-content").first

    def _menu(self, menu: str, *items: str) -> None:
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        for item in items:
            self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).last.click()

    def _listen(self, message) -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location.get('url', '')})")


def _lay(notebook: Path, workspace: Path) -> str:
    """Put a notebook into a workspace, or what a lesson's source is as a notebook. Returns its name."""
    if notebook.suffix == ".py":
        from llmsys.course import manifest
        from llmsys.course.authoring import build

        source = build.read_source(manifest.lesson(notebook.stem), notebook.parent)
        (workspace / f"{notebook.stem}.ipynb").write_text(build.writes(source), encoding="utf-8")
    else:
        shutil.copy(notebook, workspace)
    return f"{notebook.stem}.ipynb"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.lab", description="Look at a notebook.")
    parser.add_argument("notebook", type=Path, help="an .ipynb, or a lesson's source; run as it is")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--theme", choices=[*THEMES, "both"], default="both")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for all cells")
    options = parser.parse_args()
    if lacking := missing():
        print(lacking, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    trouble = []
    for theme in THEMES if options.theme == "both" else [options.theme]:
        with tempfile.TemporaryDirectory(prefix="llmsys-lab-") as scratch:
            workspace = Path(scratch) / "work"
            (workspace / ".llmsys").mkdir(parents=True)
            name = _lay(options.notebook, workspace)
            with Lab(workspace, scratch=Path(scratch), theme=theme, width=1400, height=1100) as lab:
                lab.open(name)
                lab.run_all(options.timeout)
                pictures = lab.pages(options.out, f"{options.notebook.stem}-{theme}")
                trouble += [f"{theme}: {each}" for each in lab.errors() + lab.console_errors + lab.hard_to_read()]
        print(*pictures, sep="\n")
    print(*trouble, sep="\n", file=sys.stderr)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
