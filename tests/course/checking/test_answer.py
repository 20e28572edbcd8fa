"""What a check can hold of memory, and when two answers are wrong alike."""

import numpy as np
import pytest
import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.faults import Rejected, same_memory
from llmsys.course.checking.runner import Finding, LocalRunner, Raised, Run


def judged(function, judge, *args):
    """What the judgement says of a call: the failure, or None."""
    answer = Answer(LocalRunner(function))
    try:
        with answer.property("it stands"):
            judge(answer, answer(*args))
    except Rejected as rejected:
        return rejected.failure
    return None


X = torch.randn(4, 64)


def test_reading_too_much_too_little_and_not_at_all_are_told_apart():
    def judge(answer, run):
        answer.reads(run, at_most=2, at_least=1.5, otherwise="the row was kept")

    assert judged(lambda x: x * x, judge, X) is None
    assert "3 times over, where 2 passes are enough" in judged(lambda x: x * x + x, judge, X).message
    assert judged(lambda x: x + 1, judge, X).message.endswith("cannot be: the row was kept")
    assert "no operation was seen that reads" in judged(lambda x: torch.zeros(3), judge, X).message


def test_what_one_operation_reads_is_judged():
    def judge(answer, run):
        answer.reads_at_once(run, 4 * 16)

    assert judged(lambda x: [part.sum() for part in x.split(16, -1)], judge, X) is None
    assert "256 elements" in judged(lambda x: x.sum(), judge, X).message


@pytest.mark.parametrize(
    ("leave", "name"),
    [
        (lambda x: torch.from_numpy(x.numpy() + 1), "numpy()"),
        (lambda x: torch.from_numpy((x * 2).double().numpy()), "numpy()"),
        (lambda x: torch.tensor(x.tolist()), "tolist()"),
        (lambda x: torch.tensor(np.asarray(x[0])), "__array__()"),
        (lambda x: torch.from_dlpack(x.__dlpack__()), "__dlpack__()"),
        (lambda x: torch.tensor(x.untyped_storage().tolist()), "untyped_storage()"),
        (lambda x: torch.tensor(float(x.data_ptr())), "data_ptr()"),
    ],
)
@pytest.mark.parametrize("question", ["reads_at_once", "reads", "allocates", "keeps", "done_with_the_last_read"])
def test_where_memory_is_asked_about_data_that_leaves_torch_is_refused(leave, name, question):
    said = judged(leave, lambda answer, run: getattr(answer, question)(run, 1 << 40), X)
    assert f"data left torch, by {name}" in said.message and "compute with torch's operations" in said.message
    assert judged(leave, lambda answer, run: None, X) is None, "where it is not asked about, it may leave"


def test_whole_numbers_may_leave_torch_as_a_list_of_sizes_does():
    def answer(x):
        return torch.cat([part * 2 for part in x.split(torch.tensor([16, 48]).tolist(), -1)], -1)

    assert judged(answer, lambda answer, run: answer.reads(run, 1), X) is None


def test_what_is_kept_is_judged_beside_the_result_and_up_to_a_pass():
    def keeps(x):
        kept = [part.clone() for part in x.split(16, -1)]
        return kept[0] + x[:, :16]

    def judge(passes):
        return lambda answer, run: answer.keeps(run, 3 * 4 * 16 * 4, "three tiles", passes=passes)

    assert "kept 1,024 bytes" in judged(keeps, judge(None), X).message
    assert "kept 1,024 bytes" in judged(keeps, judge(1), X).message
    assert judged(lambda x: (x.sum(), keeps(x)), judge(1), X) is None
    assert judged(lambda x: torch.cat([part * 2 for part in x.split(16, -1)], -1), judge(1), X).kind == "allocation"
    assert judged(lambda x: x * 2, judge(None), X) is None


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_spread_tensor_is_equal_and_lies_otherwise_in_memory(shape, dtype):
    answer = Answer(LocalRunner(lambda x: x + 0))
    x = (answer.randn(*shape) * 9).to(dtype)
    spread = answer.spread(x)
    assert torch.equal(spread, x) and spread.dtype == dtype
    if len(shape) > 1:
        assert not spread.is_contiguous() and not spread.mT.is_contiguous()
        with pytest.raises(RuntimeError):
            spread.view(-1)


def test_an_error_of_torch_of_the_stubs_type_is_shown_and_not_taken_for_the_stub():
    def function(x):
        raise NotImplementedError('"addmm" not implemented for Bool')

    assert judged(function, lambda *_: None, X).kind == "error"

    def stub(x):
        raise NotImplementedError

    assert judged(stub, lambda *_: None, X).kind == "stub"


def test_two_runs_are_alike_in_memory_only_where_all_figures_agree():
    run = Run(value=X, reads={0: 2.0}, at_once={0: 64}, alive_bytes=(100, 2000), largest_bytes=256, afterwards=64)
    fields = {name: getattr(run, name) for name in run.__dataclass_fields__}
    assert same_memory(run, Run(**fields | {"alive_bytes": (1900,)}))
    others = {"value": X + 1, "reads": {0: 1.9}, "at_once": {0: 256}, "alive_bytes": (4000,), "largest_bytes": 512}
    others["afterwards"] = 2048
    for name, value in others.items():
        assert not same_memory(run, Run(**fields | {name: value}))
    assert not same_memory(run, Run(error=Raised("ValueError", "")))


def test_faults_of_memory_are_alike_only_where_the_outputs_are():
    findings = (Finding("load", "one beyond the end"),)

    class Told:
        def run(self, args, kwargs):
            return Run(value=X, findings=findings)

    answer = Answer(Told())
    with pytest.raises(Rejected) as caught, answer.property("it stands"):
        answer(X)
    same = caught.value.same
    assert same(Run(value=X, findings=findings), Run(value=X, findings=findings))
    assert not same(Run(value=X, findings=findings), Run(value=X * 2, findings=findings))
    assert not same(Run(value=X, findings=findings), Run(value=X, findings=(Finding("store", ""),)))


def test_loading_one_tensor_twice_is_not_loading_another_twice():
    class Told:
        def run(self, args, kwargs):
            return Run(value=X, bytes_loaded={"k": 20, "v": 10}, bytes_stored={"o": 10}, watched=True)

    answer = Answer(Told())
    with pytest.raises(Rejected) as caught, answer.property("it stands"):
        answer.traffic(answer(X), loaded=20, stored=10)
    other = Run(value=X, bytes_loaded={"k": 10, "v": 20}, bytes_stored={"o": 10}, watched=True)
    assert caught.value.wrong(other) and not caught.value.same(caught.value.run, other)
    assert caught.value.same(caught.value.run, caught.value.run)
