"""The engine's own tests again, with its parts switched on that a CPU leaves off: the same answers, step by step."""

import functools

import pytest

from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from tests.serving import test_engine, test_schedules

VARIANTS = {"graphs": Execution(graphs=True)}


@pytest.fixture(autouse=True, params=VARIANTS)
def executed(request, monkeypatch):
    """Engines are made with this execution where a test does not say which."""
    made = Engine.__init__

    @functools.wraps(made)
    def make(self, *args, **more):
        made(self, *args, **dict(execution=VARIANTS[request.param]) | more)

    monkeypatch.setattr(Engine, "__init__", make)


for module in (test_engine, test_schedules):
    globals().update({name: test for name, test in vars(module).items() if name.startswith("test_")})
