"""`make lab`, whole: the server that it starts, and a terminal in it, where a learner types `llmsys`."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="make lab is for Linux and macOS"),
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """`make lab` in a directory with a space in its name: (the server's address, its token, the workspace)."""
    folder = tmp_path_factory.mktemp("make lab")
    environment = Path(sys.prefix)
    ready, token = environment / "ready", secrets.token_hex(16)
    options = f"--no-browser --ServerApp.port=0 --IdentityProvider.token={token}"
    # -o: what it would install is here already.
    command = ["make", "-o", ready, "lab", f"VENV={environment}", f"WORK={folder / 'my work'}", f"LAB_ARGS={options}"]
    ours = str(environment / "bin")
    path = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if each != ours)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "LLMSYS", "VIRTUAL"))}
    clean |= {"PATH": path} | {f"JUPYTER_{what}_DIR": str(folder / what.lower()) for what in ("RUNTIME", "CONFIG")}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=clean, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield address(folder, server), token, folder / "my work"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the group of this one make: a session of its own
        server.wait(20)


def address(folder: Path, server: subprocess.Popen) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        for file in (folder / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text())["url"]
            except ValueError:  # half written
                pass
        time.sleep(0.1)
    raise AssertionError(f"make lab did not start a server:\n{(folder / 'log').read_text()[-3000:]}")


def in_a_terminal(url: str, token: str, command: str) -> str:
    """What a command prints in a terminal of JupyterLab's."""
    import websocket

    asked = urllib.request.Request(
        f"{url}api/terminals", method="POST", data=b"{}", headers={"Authorization": f"token {token}"}
    )
    name = json.loads(urllib.request.urlopen(asked, timeout=30).read())["name"]
    where = f"{url.replace('http', 'ws', 1)}terminals/websocket/{name}"
    socket = websocket.create_connection(where, header=[f"Authorization: token {token}"], timeout=60)
    end = "end-of-output"
    socket.send(json.dumps(["set_size", 50, 300, 1000, 1000]))
    socket.send(json.dumps(["stdin", f"{command}; echo end-of-''output\r"]))  # as typed, it is not the word itself
    printed = ""
    while end not in printed:
        kind, *rest = json.loads(socket.recv())
        printed += rest[0] if kind == "stdout" else ""
    socket.close()
    return printed


def test_in_a_terminal_of_make_labs_jupyterlab_llmsys_is_found(lab):
    url, token, work = lab
    printed = in_a_terminal(url, token, "command -v llmsys; pwd")
    assert f"{sys.prefix}/bin/llmsys" in printed, printed
    assert str(work) in printed, "the terminal opens in the workspace"


def test_make_lab_has_laid_the_lessons_out(lab):
    assert (lab[2] / "00_start_here.ipynb").exists() and (lab[2] / ".llmsys").is_dir()
