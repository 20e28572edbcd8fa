"""Code run in a process that has imported torch and nothing of Triton or llmsys yet, for a tenth of a second each.

Starting Python and importing torch takes over a second. Here one process does that, and each piece of code runs in a
fork of it: what it imports, sets or breaks is gone with the fork. Where there is no fork (Windows), each piece gets a
process of its own.
"""

import atexit
import json
import os
import subprocess
import sys
import textwrap
from functools import cache

_SERVER = """
import json, os, sys, tempfile, torch

for line in sys.stdin:
    request = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (child := os.fork()) == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.environ.update(request["environment"])
            status = 1
            try:
                exec(compile(request["code"], "<code of a test>", "exec"), {"__name__": "__main__"})
                status = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        for file in (out, err):
            file.seek(0)
        reply = {"status": status, "out": out.read().decode(), "err": err.read().decode()}
    print(json.dumps(reply), flush=True)
"""


def run_fresh(code: str, **environment: str) -> str:
    """What the code prints. Fails if it raises. TRITON_INTERPRET is not set, unless `environment` sets it."""
    code = textwrap.dedent(code)
    if not hasattr(os, "fork"):
        return run_alone("import torch\n" + code, **environment)
    server = _server()
    print(json.dumps({"code": code, "environment": environment}), file=server.stdin, flush=True)
    reply = json.loads(server.stdout.readline())
    assert reply["status"] == 0, reply["err"]
    return reply["out"].strip()


def run_alone(code: str, **environment: str) -> str:
    """The same in a process of its own, in which not even torch is imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=_inherited() | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@cache
def _server() -> subprocess.Popen:
    """The process that forks. It ends when its stdin is closed, at the end of the tests."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER], env=_inherited(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server
