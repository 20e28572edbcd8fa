"""Fresh copies of the kernels' modules, to build a kernel over other parts than the ones that it imports.

A kernel finds its helpers by their names in its module, and its language in `llmsys.attention.hopper.gluon`. To run it
with another helper, or with a simulated language, its modules are loaded once more, and those that are loaded already
stay as they are:

    module = fresh_modules(*FORWARD, functions={"step": my_step})       # compiled, with my step
    module = fresh_modules(*FORWARD, gluon=simulated)                   # plain Python, on a simulated processor
    module.hopper_forward_kernel
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

PACKAGE = "llmsys.attention.hopper"

FORWARD = tuple(f"{PACKAGE}.{name}" for name in ("ring", "consumer", "kernels"))
"""The modules of the forward kernel, each after those that it imports."""

FP8 = (*FORWARD, f"{PACKAGE}.fp8_kernels")
"""Those of the forward kernel in eight bits."""

BACKWARD = (*FORWARD, *(f"{PACKAGE}.{name}" for name in ("backward_turns", "backward_consumer", "backward_kernels")))
"""Those of the backward kernel."""


def fresh_modules(
    *names: str,
    gluon: ModuleType | None = None,
    functions: Mapping[str, Callable] | None = None,
    prepare: Callable[[Callable, dict], Callable] = lambda function, names: function,
) -> ModuleType:
    """Load these modules anew, each over the fresh copies of those before it, and return the last.

    Parameters
    ----------
    names
        Full names, in an order in which each comes after those that it imports.
    gluon
        A module in the place of `llmsys.attention.hopper.gluon`.
    functions
        Name -> what takes the place of the function of that name, in every fresh module that has it, before the modules
        after it import it.
    prepare
        Called with each of these functions and the names of the module that it gets into; what it returns is used.

    The modules in `sys.modules`, and the kernels that others have imported from them, are the same afterwards.
    """
    stand_ins = {f"{PACKAGE}.gluon": gluon} if gluon else {}
    before = {name: sys.modules.get(name) for name in (*stand_ins, *names)}
    sys.modules.update(stand_ins)
    try:
        for name in names:
            spec = importlib.util.find_spec(name)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            given = {each: function for each, function in (functions or {}).items() if hasattr(module, each)}
            known = vars(module) | given
            vars(module).update({each: prepare(function, known) for each, function in given.items()})
    finally:
        for name, module_before in before.items():
            if module_before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module_before
    return module
