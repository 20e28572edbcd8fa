"""How steps are executed: what is no switch is refused at once, with its name."""

import pytest

from llmsys.serving.execution import Execution


def test_all_is_left_open_by_default():
    execution = Execution()
    assert (execution.ahead, execution.graphs, execution.fused, execution.few_kernels) == (None,) * 4
    assert execution.mixed_graphs is None
    assert execution.graph_memory is None and execution.capture == "on demand"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (dict(ahead=1), "ahead must be True, False or None, got 1"),
        (dict(graphs="yes"), "graphs must be True, False or None, got 'yes'"),
        (dict(fused=0), "fused must be"),
        (dict(few_kernels=[]), "few_kernels must be"),
        (dict(mixed_graphs=2), "mixed_graphs must be"),
        (dict(graph_memory=-1), "graph_memory must be a whole number of bytes from 0 on, or None, got -1"),
        (dict(graph_memory=True), "graph_memory must be"),
        (dict(graph_memory=1e9), "graph_memory must be"),
        (dict(capture="later"), 'capture must be "on demand" or "at start", got \'later\''),
    ],
)
def test_what_is_no_switch_is_refused(more, named):
    with pytest.raises(ValueError, match=named):
        Execution(**more)
