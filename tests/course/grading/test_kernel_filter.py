"""Without a jail, too, no signal from a learner's process ends the grader: Linux refuses it, to all that it starts."""

import platform
import subprocess
import sys

import pytest

from llmsys.course.grading.inside import kernel_filter

PROGRAM = """
import os, signal, sys, time
from llmsys.course.grading.inside import kernel_filter

grader, learner = os.getpid(), os.fork()
if learner == 0:
    if not kernel_filter.protect(grader):
        os._exit(3)
    def refused(call):
        try:
            call()
        except OSError:
            return True
        return False
    ways = [
        lambda: os.kill(grader, signal.SIGTERM),
        lambda: os.kill(grader, signal.SIGKILL),
        lambda: os.killpg(os.getpgid(grader), signal.SIGINT),
        lambda: os.kill(-1, signal.SIGINT),
        lambda: signal.pidfd_send_signal(os.pidfd_open(grader), signal.SIGTERM),
    ]
    wrong = [n for n, way in enumerate(ways) if not refused(way)]
    wrong += ["shell"] if os.system(f"kill -9 {grader} 2>/dev/null") == 0 else []
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(child, signal.SIGKILL)  # its own it may end
    wrong += [] if os.WTERMSIG(os.waitpid(child, 0)[1]) == 9 else ["its own child"]
    print(wrong, flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(learner, 0)[1]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in kernel_filter._CALLS, reason="no filter for this machine"
)
def test_what_would_reach_the_grader_is_refused():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if done.returncode == 3:
        pytest.skip("this kernel takes no filter")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
