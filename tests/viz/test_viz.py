"""The package: cheap to import, and every public name is there."""

import subprocess
import sys

import pytest

from llmsys import viz


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, llmsys.viz; "
        "print([name for name in ('torch', 'matplotlib', 'ipywidgets', 'IPython') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there_and_does_not_turn_into_a_module():
    for _ in range(2):  # importing a submodule puts it into the package under its own name
        for name in viz.__all__:
            assert callable(getattr(viz, name)), name
    assert set(viz.__all__) <= set(dir(viz))


def test_a_name_that_there_is_not_is_answered_with_those_that_there_are():
    with pytest.raises(AttributeError, match="has no attribute 'plot_everything'; it has .*Stepper"):
        viz.plot_everything  # noqa: B018
