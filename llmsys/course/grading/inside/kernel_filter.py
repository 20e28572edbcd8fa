"""System calls by which a process reaches another one, refused by Linux for the process that asks for it.

Two processes of one user may end each other. Where there is no jail (`llmsys.course.grading.jail`), a learner's process
gives up, before any of the learner's code runs, what would reach the grader: signals to it, to its group or to
everybody; other processes' memory. That is a seccomp filter: a little program that the kernel asks at each system call,
which needs no rights, cannot be taken off again, and holds for all that the process starts.

(Linux, Documentation/userspace-api/seccomp_filter.rst. The filter's program is classic BPF.) Elsewhere than on Linux,
and on processors that are not listed here, nothing is refused.
"""

import ctypes
import errno
import os
import platform
import struct

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_SIGKILL, _MODE_FILTER = 9, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

# By processor: its name for the kernel, and the numbers of kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, which name
# a process first, and of tkill, ptrace, process_vm_readv, process_vm_writev, pidfd_send_signal, pidfd_getfd.
_CALLS = {
    "x86_64": (0xC000003E, (62, 234, 129, 297), (200, 101, 310, 311, 424, 438)),
    "aarch64": (0xC00000B7, (129, 131, 138, 240), (130, 117, 270, 271, 424, 438)),
}


def protect(grader: int) -> bool:
    """Refuse what would reach the process `grader`, from here on. Returns whether the kernel has agreed."""
    known = _CALLS.get(platform.machine())
    libc = _libc()
    if libc is None or known is None:
        return False
    architecture, to_a_process, refused = known
    targets = (grader, -grader, -os.getpgid(grader), -1)
    code = _program(architecture, to_a_process, refused, [n & 0xFFFFFFFF for n in targets])
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    held = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    return libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(program), 0, 0) == 0


def die_with_parent() -> None:
    """End with the grader, and take care of the processes whose parents end: they become this one's children."""
    if (libc := _libc()) is not None:
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _libc():
    return ctypes.CDLL(None, use_errno=True) if platform.system() == "Linux" else None


def _program(architecture: int, to_a_process: tuple, refused: tuple, targets: list[int]) -> bytes:
    """The filter: another processor's calls are let pass, those to a process are compared with the targets."""
    steps: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _ARCHITECTURE)]
    body: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _NUMBER)]
    checks = len(to_a_process) + len(refused)
    # After the checks come: allow, the comparison with the targets, allow, refuse.
    for n, number in enumerate(refused):
        body.append((_EQUAL, checks - n + 2 + len(targets), 0, number))
    for n, number in enumerate(to_a_process):
        body.append((_EQUAL, len(to_a_process) - n, 0, number))
    body += [(_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    body += [(_EQUAL, len(targets) - n, 0, target) for n, target in enumerate(targets)]
    body += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    steps += [(_EQUAL, 0, len(body) - 2, architecture), *body]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
