"""Running a solution: a fresh process of this interpreter, an empty directory, and only what is the same anywhere.

A build that ran in the author's own kernel would see the author's settings, files and leftovers. Here the kernel is of
the interpreter that runs the build (whatever kernels are registered under any name), its directory and workspace are
new and empty, and its IPython profile is a bare one. What it shows is kept without what would differ on another
machine or in another run: times, directories, live widgets.

A solution that raises, or that one of its own checks rejects, is not built.
"""

import copy
import os
import re
import sys
import tempfile
from pathlib import Path

import ipykernel.kernelspec
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from llmsys.course import manifest
from llmsys.course.workspace.notebook import role

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class BuildError(RuntimeError):
    """A source that cannot be built. The message names the file, the cell and the remedy."""


def execute_notebook(source: NotebookNode, *, timeout: int = 600) -> NotebookNode:
    """Run every cell, in order, in a fresh kernel with an empty workspace; `timeout` is a cell's, in seconds.

    Raises BuildError where a cell raises, or where a check does not pass.
    """
    notebook = copy.deepcopy(source)
    for position in reversed([i for i, cell in enumerate(notebook.cells) if role(cell) == "check"]):
        question = nbformat.v4.new_code_cell("assert _, 'this check rejects the solution'")
        question.metadata.update(asks=notebook.cells[position].id)
        notebook.cells.insert(position + 1, question)
    with tempfile.TemporaryDirectory(prefix="llmsys-build-") as scratch:
        workspace = Path(scratch).resolve() / "work"
        workspace.mkdir()
        client = NotebookClient(
            notebook,
            km=ThisInterpreter(),
            timeout=timeout,
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(workspace)}},
        )
        try:
            client.execute(env=_environment(workspace))
        except CellExecutionError as error:
            raise BuildError(_why_it_stopped(notebook, error)) from None
    replacements = {str(workspace): "work", str(manifest.HERE.parents[1]): ".", sys.prefix: "python"}
    notebook.cells = [cell for cell in notebook.cells if "asks" not in cell.metadata]
    notebook.metadata = copy.deepcopy(source.metadata)  # nbclient adds this machine's Python version
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.metadata.pop("execution", None)
        cell.execution_count = count if cell.source.strip() else None
        cell.outputs = [kept for kept in (_portable(each, count, replacements) for each in cell.outputs) if kept]
    return notebook


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels of the interpreter that is running now, whatever kernels are registered on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**ipykernel.kernelspec.get_kernel_dict())


def _environment(workspace: Path) -> dict[str, str]:
    """The kernel's environment: this library, an empty workspace, no settings of the user's."""
    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)  # so that the kernel chooses the inline backend
    library = [str(manifest.HERE.parents[1]), environment.get("PYTHONPATH", "")]
    environment |= {
        "LLMSYS_WORKSPACE": str(workspace),
        "IPYTHONDIR": str(workspace.parent / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, library)),
        "PYTHONHASHSEED": "0",
    }
    return environment


def _why_it_stopped(notebook: NotebookNode, error: CellExecutionError) -> str:
    """Which cell stopped the build, and how."""
    lesson = notebook.metadata.llmsys.lesson
    for cell in notebook.cells:
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            where = cell.metadata.get("asks", cell.id)
            if "asks" in cell.metadata:
                checked = next(each for each in notebook.cells if each.id == where)
                said = [output.get("data", {}).get("text/plain", output.get("text", "")) for output in checked.outputs]
                return "\n".join([f"lesson {lesson}, cell {where}: the check rejects the solution:", *said])
            return f"lesson {lesson}, cell {where} raised {error.ename}: {error.evalue}\n{error.traceback}"
    return f"lesson {lesson}: {error}"


def _portable(output: NotebookNode, count: int, replacements: dict[str, str]) -> NotebookNode | None:
    """An output without what differs from run to run or machine to machine; None where nothing is left of it.

    A live widget is nothing on a web page: its view goes, and the static frame that is shown beside it stays.
    """
    if WIDGET_VIEW in output.get("data", {}):
        output.data.pop(WIDGET_VIEW)
        output.get("metadata", {}).pop(WIDGET_VIEW, None)
        if set(output.data) <= {"text/plain"}:
            return None
    if "execution_count" in output:
        output.execution_count = count
    for key in ("text", "traceback", "evalue"):
        if key in output:
            output[key] = _without_paths(output[key], replacements)
    for mime, value in output.get("data", {}).items():
        if not mime.startswith("image/") or mime == "image/svg+xml":
            output.data[mime] = _without_paths(value, replacements)
    return output


def _without_paths(value, replacements: dict[str, str]):
    """A text, or a list or table of texts, in which this machine's directories are replaced by what stands for them."""
    if isinstance(value, list):
        return [_without_paths(each, replacements) for each in value]
    if isinstance(value, dict):
        return {key: _without_paths(each, replacements) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    value = re.sub(r"[^\s\"'<>()]*[/\\]ipykernel_\d+[/\\]\d+\.py", "cell", value)
    for directory in sorted(replacements, key=len, reverse=True):
        value = value.replace(directory, replacements[directory])
    home = str(Path.home())
    return re.sub(rf"(?<![\w/.]){re.escape(home)}(?=[/\\])", "~", value) if len(home) > 1 else value
