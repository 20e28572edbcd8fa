"""Whether a kernel did the work: the loads, stores and products that the library's own kernel does.

Triton's interpreter runs a kernel as Python, and Python can do anything: hand its tensors to torch, say, and store what
comes back. The value is right then, and little is loaded. So of a kernel that has passed, every call must have taken
tiles by tl.load and tl.store, and some call products by tl.dot, where the library's kernel has these in its text. (How
many bytes and products in which call, is a check's to ask: `llmsys.course.checking.metered`.)
"""

import re
from collections.abc import Sequence

from torch import Tensor

from llmsys.course.checking.answer import Call
from llmsys.course.checking.faults import Failure
from llmsys.course.checking.runner import resolve
from llmsys.hardware.kernel_source import source_of


def work_of(reference: object) -> frozenset[str]:
    """Which of "load", "store" and "dot" a kernel does, and the helpers that it calls. Nothing for what is no kernel,
    or has none of them in its text, as Gluon's kernels."""
    try:
        text = source_of(resolve(reference)).text
    except (ValueError, ImportError, AttributeError):
        return frozenset()
    return frozenset(re.findall(r"\btl\.(load|store|dot)\(", text))


def idle(needed: frozenset[str], calls: Sequence[Call], shown) -> tuple[Call, Failure] | None:
    """The first of these calls in which the kernel left out some of that work, and what to say of it. `shown(call)` is
    the call as text. Only where the sanitizer counts, and there is something to compute. A call may have no products to
    make, as where no query sees a key; all of them together have."""
    counted = [call for call in calls if call.run.watched and call.run.error is None and _has_work(call)]
    multiplies = any("dot" in _done(call) for call in counted)
    for call in counted:
        done = _done(call) | ({"dot"} if multiplies else set())
        if missing := [f"tl.{name}" for name in ("load", "store", "dot") if name in needed - done]:
            what = f"no {' and no '.join(missing)} was seen in the kernel, which cannot do without"
            return call, Failure("work", f"{what}: something else computes", call=shown(call))
    return None


def _done(call: Call) -> set[str]:
    return {name for name, times in call.run.operations.items() if times}


def _has_work(call: Call) -> bool:
    return all(x.numel() for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor))
