"""The process that starts ranks: it imports torch once, and each rank is a copy of it, made in milliseconds.

A copy (fork) is safe as long as the process has no threads and has touched no GPU; so this one does nothing else. The
caller's own process, with JupyterLab's threads and perhaps a GPU in use, is never copied. The requests come through a
socket, a line of JSON each; what a rank needs (its end of the control socket, its pipes) comes beside it as file
descriptors. When the caller ends, however it ends, the socket closes: then all ranks are killed, with whatever
processes they have started in their process groups, and the directory of the runs is removed.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path

DESCRIPTORS = 3  # control socket, stdout, stderr
_PR_SET_PDEATHSIG = 1


def serve(descriptor: int, caller: int, directory: str) -> None:
    """Serves the process `caller`, whose requests come through the socket, until it ends.

    {"start": rank, "number": n}  ->  {"started": pid, "number": n}, and some day {"ended": pid, "status": exit code, or
                                      minus a signal}
    {"kill": pid}        kills the rank and its process group
    {"signal": pid, "number": n}
    """
    sock = socket.socket(fileno=descriptor)
    import cloudpickle  # noqa: F401  (it and torch are what takes long: once, here, and never in a rank)
    import torch.distributed

    from llmsys.parallel.ranks import worker  # and only now, for the same reason

    assert not torch.cuda.is_initialized()
    children: set[int] = set()
    rest, descriptors = b"", []  # of a request that has come in part
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _say(sock, {"threads": len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1, "number": 0})
    try:
        while os.getppid() == caller:
            ready = select.select([sock, woken], [], [], 1.0)[0]
            if woken in ready:
                os.read(woken, 4096)
                for pid in list(children):
                    if (status := _ended(pid)) is not None:
                        children.discard(pid)
                        _say(sock, {"ended": pid, "status": status})
            if sock in ready:
                data, given, *_ = socket.recv_fds(sock, 4096, DESCRIPTORS)
                if not data:
                    break
                descriptors += given
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    if "start" in request:
                        pid = os.fork()
                        if pid == 0:
                            _become_a_rank(worker, request["start"], descriptors, directory, [sock, woken, wake])
                        children.add(pid)
                        while descriptors:
                            os.close(descriptors.pop())
                        _say(sock, {"started": pid, "number": request["number"]})
                    elif request.get("kill") in children:
                        _kill_group(request["kill"])
                    elif request.get("signal") in children:
                        os.kill(request["signal"], request["number"])
    except (BrokenPipeError, ConnectionResetError):  # the caller is gone
        pass
    finally:
        for pid in children:
            _kill_group(pid)
        for pid in children:
            os.waitpid(pid, 0)
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)  # without taking torch apart, which takes a second


def _say(sock: socket.socket, message: dict) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")


def _ended(pid: int) -> int | None:
    """The exit status of a child that has ended; what it has left in its process group is killed before its number can
    be given to another."""
    if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        _kill_group(pid)
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # it may not have come as far as having a group
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of those that have ended
            pass


def _become_a_rank(worker, rank: int, descriptors: list[int], directory: str, ours: list) -> None:
    """In the copy: does a rank's work, and never returns."""
    code = 1
    try:
        server = os.getppid()
        os.setsid()
        if sys.platform == "linux":  # whatever ends the server ends its ranks
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in ours:
            each.close() if isinstance(each, socket.socket) else os.close(each)
        control, out, err = descriptors
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for pipe, standard in ((out, 1), (err, 2)):
            os.dup2(pipe, standard)
            os.close(pipe)
        worker.work(rank, control, Path(directory))
        code = 0
    except BaseException:  # a copy must not go on as the server
        traceback.print_exc()
    finally:
        os._exit(code)
