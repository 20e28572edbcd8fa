"""A JupyterLab server of its own: for the browser tests, and for looking at a lesson."""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


class Server:
    """`jupyter lab` on 127.0.0.1, on a free port, with a token; all it keeps is under `scratch`."""

    def __init__(self, workspace: Path, scratch: Path, theme: str):
        self.token, self.runtime = secrets.token_hex(16), scratch / "runtime"
        self._settings(scratch / "settings", theme)
        environment = os.environ | {
            "JUPYTER_CONFIG_DIR": str(scratch / "config"),
            "JUPYTER_DATA_DIR": str(scratch / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
            "IPYTHONDIR": str(scratch / "ipython"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        for name in ("LLMSYS_WORKSPACE", "JUPYTER_TOKEN", "MPLBACKEND"):
            environment.pop(name, None)
        _register_kernel(scratch / "data")
        self._log = open(scratch / "server.log", "w", encoding="utf-8")
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--allow-root"]
        command += ["--ServerApp.port=0", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={workspace}"]
        self._process = subprocess.Popen(
            command, cwd=workspace, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )
        self._address = self._wait()

    def url(self, path: str) -> str:
        return f"{self._address}{path}?token={self.token}"

    def stop(self) -> None:
        """End the server, and with it its kernels."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self, timeout: float = 120) -> str:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            for file in self.runtime.glob("jpserver-*.json"):
                try:
                    return json.loads(file.read_text())["url"]
                except ValueError:  # half written
                    pass
            time.sleep(0.1)
        self.stop()
        log = Path(self._log.name).read_text(encoding="utf-8")
        raise RuntimeError(f"JupyterLab did not start:\n{log[-3000:]}")

    @staticmethod
    def _settings(folder: Path, theme: str) -> None:
        settings = {
            "apputils-extension/themes": {"theme": THEMES[theme]},
            # By default a cell is in the document only while it is near the screen.
            "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        }
        for plugin, values in settings.items():
            path = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")


def _register_kernel(data: Path) -> None:
    """The kernel that the notebooks ask for, as `make lab` registers it, for this interpreter."""
    folder = data / "kernels" / "llmsys"
    folder.mkdir(parents=True, exist_ok=True)
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": launch, "display_name": "llmsys", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
