"""Wrong Triton kernels as they are written down here: a right one, in which a line or two read otherwise."""

import inspect
import linecache

from llmsys.course.watch import underlying
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


def rewritten(kernel, name: str, *changes: tuple[str, str], names: dict | None = None):
    """`kernel` under another name, with each first text of `changes` replaced by its second. `names`: what its text
    refers to beside triton and tl.

    Raises ValueError where a text is not in the kernel, or more than once.
    """
    text = inspect.getsource(underlying(kernel))
    for before, after in [(f"def {underlying(kernel).__name__}(", f"def {name}("), *changes]:
        if text.count(before) != 1:
            raise ValueError(f"{name}: {before!r} must be in the kernel once, it is {text.count(before)} times")
        text = text.replace(before, after)
    file = f"<misconception {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # where Triton looks for it
    namespace = {"triton": triton, "tl": tl, "__name__": __name__} | (names or {})
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]
