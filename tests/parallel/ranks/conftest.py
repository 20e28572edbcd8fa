"""Processes are dear: all tests of a worker share the warm ranks, and when they are over, none is left."""

import time

import psutil
import pytest

from llmsys.parallel.ranks import close


def processes() -> set[int]:
    """The fork servers of this process, and all that they have started."""
    children = [each for each in psutil.Process().children() if each.status() != "zombie"]
    servers = [each for each in children if "forkserver.serve" in " ".join(each.cmdline())]
    return {each.pid for server in servers for each in [server, *server.children(recursive=True)]}


def all_gone(pids: set[int], within: float = 10.0) -> bool:
    """Whether none of these processes lives, after so many seconds at most."""
    until = time.monotonic() + within
    while alive := {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"}:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return not alive


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left():
    yield
    close()
    assert not processes()
