"""autograde.yml and its script, .github/autograde: run for a fork, with local repositories in the place of GitHub's."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from llmsys.course.workspace.notebook import write_notebook

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / ".github/autograde"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a script for GitHub's Ubuntu")

# An upstream repository as small as can be: what `make setup` sets up says with which arguments it was called.
RECORDS = """
setup:
\tmkdir -p .venv/bin
\techo '#!/bin/sh' >.venv/bin/llmsys
\techo 'echo "$(VERSION) pip $(PIP_ARGS) python $(PYTHON) in $$PWD" "token=$$GITHUB_TOKEN path=$$PYTHONPATH" "$$@"' \
\t\t>>.venv/bin/llmsys
\tchmod +x .venv/bin/llmsys
"""


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Hub:
    """What stands in for GitHub: repositories in a folder, and a server that says what was forked from what."""

    def __init__(self, folder: Path):
        self.folder, self.answers, self.asked = folder, {}, []
        hub = self

        class Api(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.path, self.headers.get("Authorization")))
                answer = hub.answers.get(self.path)
                self.send_response(200 if answer else 404)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *arguments):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Api)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.fork = folder / "ada" / "llmsys"
        (self.fork / "work").mkdir(parents=True)
        self.says_forked("teacher/llmsys")

    def says_forked(self, parent, field="parent"):
        self.answers["/repos/ada/llmsys"] = {"fork": True, field: {"full_name": parent}} if parent else {"fork": False}

    def commit(self, name, version, makefile=RECORDS, tag=None, branch="main"):
        """Another commit in the repository of that name; returns its hash."""
        folder = self.folder / name
        if not (folder / ".git").exists():
            folder.mkdir(parents=True, exist_ok=True)
            git(folder, "init", "-q", "-b", "main")
        git(folder, "checkout", "-q", "-B", branch)
        (folder / "Makefile").write_text(f"VERSION := {version}{makefile}")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", version)
        if tag:
            git(folder, "tag", "-a", tag, "-m", tag)
        return git(folder, "rev-parse", "HEAD")

    def autograde(self, temporary, **variables):
        """The script, as the workflow runs it: (exit status, what it printed, the step's summary)."""
        temporary.mkdir(exist_ok=True)
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(temporary),
            "GIT_CONFIG_NOSYSTEM": "1",
            "RUNNER_TEMP": str(temporary),
            "GITHUB_WORKSPACE": str(self.fork),
            "GITHUB_REPOSITORY": "ada/llmsys",
            "GITHUB_SERVER_URL": self.folder.as_uri(),
            "GITHUB_API_URL": f"http://127.0.0.1:{self.server.server_port}",
            "GITHUB_STEP_SUMMARY": str(temporary / "summary.md"),
            "GITHUB_TOKEN": "a-token",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "GRADER": "",  # as a variable that is not set
            "PIP_ARGS": "",
        }
        done = subprocess.run(
            ["bash", str(SCRIPT)], cwd=temporary, env=environment | variables, capture_output=True, text=True
        )
        summary = temporary / "summary.md"
        return done.returncode, done.stdout + done.stderr, summary.read_text() if summary.exists() else ""


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_the_grader_is_the_newest_tag_of_the_repository_that_was_forked(hub, tmp_path):
    newest = ""
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        commit = hub.commit("teacher/llmsys", version, tag=f"v{version}")
        newest = commit if version == "1.10.0" else newest
    hub.commit("teacher/llmsys", "2.0", tag="v2.0rc1")
    hub.commit("teacher/llmsys", "untagged", tag="zebra")
    hub.commit("ada/llmsys", "the fork's own", tag="v99.0")
    status, said, summary = hub.autograde(tmp_path / "runner", PYTHONPATH=str(hub.fork))
    assert status == 0, said
    assert summary == f"Graded by teacher/llmsys, v1.10.0, commit {newest}.\n\n" and summary.strip() in said
    runner, work = tmp_path / "runner", hub.fork / "work"
    assert f"1.10.0 pip  python python in {runner} token= path= grade {work}" in said
    assert "--junit grade.xml --json grade.json --summary" in said
    assert hub.asked == [("/repos/ada/llmsys", "Bearer a-token")]


def test_without_a_tag_it_is_the_default_branch(hub, tmp_path):
    hub.commit("teacher/llmsys", "main one")
    commit = hub.commit("teacher/llmsys", "main two")
    hub.commit("teacher/llmsys", "an experiment", branch="experiment")
    git(hub.folder / "teacher/llmsys", "checkout", "-q", "main")
    status, said, summary = hub.autograde(tmp_path / "runner", PIP_ARGS="--extra-index-url URL")
    assert status == 0 and summary == f"Graded by teacher/llmsys, the default branch, commit {commit}.\n\n", said
    assert "main two pip --extra-index-url URL python" in said


def test_a_repository_made_from_a_template_has_its_template_for_upstream(hub, tmp_path):
    hub.commit("teacher/llmsys", "1.0", tag="1.0")
    hub.says_forked("teacher/llmsys", "template_repository")
    assert "Graded by teacher/llmsys, 1.0, commit" in hub.autograde(tmp_path / "runner")[2]


@pytest.mark.parametrize(
    ("variable", "graded_by"),
    [
        ("@v1.0", "teacher/llmsys, v1.0,"),
        ("school/llmsys@v7", "school/llmsys, v7,"),
        ("school/llmsys@exam/2026", "school/llmsys, exam/2026,"),
        ("school/llmsys", "school/llmsys, v7,"),
        ("{hub}/school/llmsys@v7", "{hub}/school/llmsys, v7,"),
    ],
)
def test_a_variable_names_another_grader(hub, tmp_path, variable, graded_by):
    for version in ("1.0", "2.0"):
        hub.commit("teacher/llmsys", version, tag=f"v{version}")
    hub.commit("school/llmsys", "seven", tag="v7")
    hub.commit("school/llmsys", "exam", branch="exam/2026")
    url = hub.folder.as_uri()
    status, said, summary = hub.autograde(tmp_path / "runner", GRADER=variable.format(hub=url))
    assert status == 0 and f"Graded by {graded_by.format(hub=url)} commit" in summary, said
    assert bool(hub.asked) == variable.startswith("@"), "GitHub is asked where it has to be"


@pytest.mark.parametrize(
    ("variable", "parent", "says"),
    [
        ("", None, "ada/llmsys is not a fork: name its grader in the repository variable GRADER"),
        ("", "nobody/llmsys", "there is no repository nobody/llmsys"),
        ("nobody/nothing", "teacher/llmsys", "there is no repository nobody/nothing"),
        ("@v9", "teacher/llmsys", "teacher/llmsys has no v9"),
        ("@--upload-pack=touch", "teacher/llmsys", "GRADER is OWNER/NAME@REF"),
        ("--upload-pack=touch", "teacher/llmsys", "autograde: "),
    ],
)
def test_where_there_is_no_grader_it_says_why_and_grades_nothing(hub, tmp_path, variable, parent, says):
    hub.commit("teacher/llmsys", "1.0", tag="v1.0")
    hub.says_forked(parent)
    status, said, summary = hub.autograde(tmp_path / "runner", GRADER=variable)
    assert status == 2 and says in said and says in summary and "Graded by" not in summary, said


def test_where_github_does_not_answer_it_says_what_to_do(hub, tmp_path):
    hub.answers.clear()
    status, said, summary = hub.autograde(tmp_path / "runner")
    assert status == 2 and "run it again, or set the variable GRADER" in summary, said


def test_a_fork_is_graded_by_the_upstream_grader_whatever_lies_in_its_tree(hub, tmp_path):
    """With the real grader: `make setup` gives the upstream repository this installation."""
    makefile = f"""
setup:
\tmkdir -p .venv/bin
\techo '#!/bin/sh' >.venv/bin/llmsys
\techo 'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m llmsys "$$@"' >>.venv/bin/llmsys
\tchmod +x .venv/bin/llmsys
"""
    hub.commit("teacher/llmsys", "1.0", makefile, tag="v1.0")
    trap = "import pathlib; pathlib.Path({!r}).touch()\n".format(str(tmp_path / "imported"))
    for name in ("llmsys/__init__.py", "torch.py", "sitecustomize.py", "conftest.py", "work/typer.py", "work/torch.py"):
        (hub.fork / name).parent.mkdir(exist_ok=True)
        (hub.fork / name).write_text(trap)
    (hub.fork / "pip.conf").write_text("[global]\nindex-url = nowhere\n")
    answer = "def next_token(logits):\n    return logits[:, -1].argmax(dim=-1)\n"
    cell = {"cell_type": "code", "id": "00-next_token", "source": answer, "metadata": {}, "outputs": []}
    notebook = {"cells": [cell | {"execution_count": None}], "metadata": {"llmsys": {"lesson": "00"}}}
    write_notebook(hub.fork / "work" / "00_start_here.ipynb", notebook | {"nbformat": 4, "nbformat_minor": 5})
    status, said, summary = hub.autograde(tmp_path / "runner")
    assert status == 1, said  # the other lessons are not there
    graded = json.loads((tmp_path / "runner" / "grade.json").read_text())["exercises"]
    assert [each["exercise"] for each in graded if each["status"] == "passed"] == ["00.next_token"]
    assert summary.startswith("Graded by teacher/llmsys, v1.0, commit ") and "llmsys: 1 of " in summary
    assert (tmp_path / "runner" / "grade.xml").exists() and not (tmp_path / "imported").exists()


def test_the_workflow_may_only_read_and_runs_the_script_outside_of_the_forks_tree():
    text = (ROOT / ".github/workflows/autograde.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"} and "pull_request_target" not in text
    (job,) = workflow["jobs"].values()
    assert job["steps"][0]["with"]["persist-credentials"] is False
    assert not any("secrets." in str(step) for step in job["steps"])
    (step,) = [step for step in job["steps"] if "run" in step]
    assert step["run"] == 'bash "$GITHUB_WORKSPACE/.github/autograde"'
    assert step["working-directory"] == "${{ runner.temp }}", "in the fork's tree, its own llmsys/ could be imported"
    assert set(step["env"]) == {"GRADER", "PIP_ARGS", "GITHUB_TOKEN"}
    kept = job["steps"][-1]["with"]["path"]
    assert "grade.xml" in kept and "grade.json" in kept
