"""Checks from the learner's side: what passes, what is said of what does not, which hint comes next."""

import html
import re

import pytest
import torch

from llmsys.course import attempts, manifest
from llmsys.course.attempts import check, hint
from llmsys.course.checking import checks, diagnosis, limits
from llmsys.course.checking.checks import exercise_check, get_check, run_check
from llmsys.course.checking.diagnosis import misconception, misconceptions_of
from llmsys.course.checking.faults import FAULTS
from llmsys.course.checking.runner import Finding, LocalRunner, Run
from llmsys.course.workspace import progress


def library_softmax(x):
    e = torch.exp(x - x.amax(dim=-1, keepdim=True))
    return e / e.sum(dim=-1, keepdim=True)


@exercise_check(
    "97.softmax",
    reference=library_softmax,
    forbids=("aten::*softmax*",),
    hints=("Divide.", "Each row sums to one.", "a = exp(x)\nreturn a / sum(a)"),
)
def softmax_check(answer):
    with answer.property("rows sum to one", why="They are probabilities."):
        x = answer.randn(3, 4)
        run = answer(x)
        answer.form(run, x)
        answer.that(run, lambda r: bool((r.value.sum(-1) - 1).abs().max() < 1e-5), "rows that sum to 1")
    with answer.property("the weights are softmax's", why="By definition."):
        for n in (1, 5):
            x = answer.randn(2, n)
            answer.agrees(x)
    with answer.property("nothing overflows", why="e^89 is infinite in float32."):
        answer.matches(torch.tensor([[0.5, 0.5]]), torch.full((1, 2), 1e4))
    with answer.property("x is read at most twice, and copied once", why="Memory is what takes the time."):
        x = answer.randn(2, 100)
        run = answer(x)
        answer.reads(run, at_most=2)
        answer.allocates(run, at_most=x.numel() * 4, what="one copy of x")


@misconception("97.softmax", "You forgot the maximum.", why="Large logits overflow.")
def no_maximum(x):
    return torch.exp(x) / torch.exp(x).sum(dim=-1, keepdim=True)


@misconception("97.softmax", "You normalised columns.")
def columns(x):
    return library_softmax(x.T).T


@misconception("97.softmax", "You read x three times.")
def three_passes(x):
    m = x.amax(dim=-1, keepdim=True)
    l = torch.exp(x - m).sum(dim=-1, keepdim=True)
    return torch.exp(x - m) / l


@misconception("97.softmax", "You computed in double precision.")
def wide(x):
    return library_softmax(x.double()).float()


class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True


def right(x):
    """Passes: not the library's, but alike."""
    shifted = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return shifted / shifted.sum(dim=-1, keepdim=True)


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.setenv("LLMSYS_WORKSPACE", "")
    monkeypatch.setattr(progress, "_in_memory", progress.Progress())


def test_a_right_answer_passes_and_looks_the_same_every_time():
    result = check("97.softmax", right)
    assert result and result.passed and all(each.passed for each in result.properties)
    assert repr(result) == (
        "✓ 97.softmax passed\n  ✓ rows sum to one\n  ✓ the weights are softmax's\n  ✓ nothing overflows\n"
        "  ✓ x is read at most twice, and copied once"
    )
    again = check("97.softmax", right)
    assert repr(again) == repr(result) and again._repr_html_() == result._repr_html_()
    text = html.unescape(re.sub("<[^>]*>", " ", result._repr_html_()))
    assert text.split() == repr(result).replace("\n", " ").split()


def test_an_optional_exercise_is_called_so_in_its_results_and_hints(monkeypatch):
    monkeypatch.setattr(manifest, "label", lambda id: f"{id} (optional)")
    passed, failed = check("97.softmax", right), check("97.softmax", lambda x: x)
    assert repr(passed).startswith("✓ 97.softmax (optional) passed\n")
    assert repr(failed).startswith("✗ 97.softmax (optional)\n")
    for each in (passed, failed, hint("97.softmax")):
        assert "97.softmax (optional)" in each._repr_html_()


def test_a_stub_is_not_a_failure():
    def stub(x):
        raise NotImplementedError

    result = check("97.softmax", stub)
    assert not result and result.failure.kind == "stub" and "not written yet" in repr(result) and not result.hint_number
    assert "97.softmax" not in progress.load().exercises


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wrong", [no_maximum, columns, three_passes, wide])
def test_a_misconception_is_named(wrong, seed):
    result = run_check(get_check("97.softmax"), LocalRunner(wrong), seed=seed)  # they may use what answers may not
    assert not result and result.misconception.function is wrong


def test_a_misconception_is_recognised_in_other_code():
    def same_mistake(x):
        total = sum(torch.exp(x[:, i]) for i in range(x.shape[1]))
        return torch.stack([torch.exp(x[:, i]) / total for i in range(x.shape[1])], dim=1)

    result = check("97.softmax", same_mistake)
    assert result.misconception.message == "You forgot the maximum."
    assert "This looks like: You forgot the maximum. Large logits overflow." in repr(result)
    assert "called    softmax((1, 2) float32)" in repr(result) and "why       e^89 is infinite" in repr(result)


def test_a_mistake_that_no_misconception_makes_is_given_no_name():
    result = check("97.softmax", lambda x: right(x) ** 2)
    assert not result and result.misconception is None and "looks like" not in repr(result)


def shortcut(x):
    return torch.softmax(x, dim=-1)


early = library_softmax


def through_the_library(x):
    try:
        return early(x)
    except Exception:
        return right(x)


def in_place(x):
    x -= x.amax(dim=-1, keepdim=True)
    return right(x)


def forged(x):
    return torch.full_like(x, 0.3).as_subclass(Yes)


def loud(x):
    print("noise " * 10_000)
    return right(x) + 1


def leaves(x):
    raise SystemExit


@pytest.mark.parametrize(
    "answer, kind, message",
    [
        (shortcut, "forbidden", "write this yourself: torch's softmax was called"),
        (through_the_library, "forbidden", "write this yourself: .*library_softmax was called"),
        (library_softmax, "forbidden", "write this yourself: .*library_softmax was called"),
        (in_place, "modified", "it modified its argument number 1 in place"),
        (forged, "type", "not a subclass"),
        (leaves, "error", "it raised SystemExit\nline .* of the cell: raise SystemExit"),
        (lambda x: x.nope, "error", "it raised AttributeError: .*no attribute 'nope'"),
        (lambda x: None, "value", "expected a tensor of shape .* got None"),
        (loud, "value", "expected rows that sum to 1"),
        (lambda: None, "error", "it raised TypeError"),
    ],
)
def test_each_kind_of_failure_is_named_with_its_message(answer, kind, message):
    result = check("97.softmax", answer)
    assert not result and result.failure.kind == kind and re.search(message, result.failure.message)
    assert len(repr(result)) < 4000 and len(result._repr_html_()) < 10_000


def test_a_hint_is_offered_from_the_second_failure_on_and_only_those_asked_for_are_counted():
    def asked():
        return progress.load().exercises["97.softmax"].hints

    assert check("97.softmax", lambda x: x + 1).hint_number == 0 and asked() == 0
    second = check("97.softmax", lambda x: x + 2)
    assert (second.hint_number, asked()) == (1, 0)
    assert 'Hint 1 of 3, for the asking: hint("97.softmax")' in repr(second) and "Divide." not in repr(second)
    assert "hint(&quot;97.softmax&quot;)" in second._repr_html_()
    assert hint("97.softmax").text.endswith(" Divide.") and asked() == 1
    assert check("97.softmax", lambda x: x + 4).hint_number == 2
    assert [hint("97.softmax").number for _ in range(3)] == [2, 3, 3] and asked() == 3
    last = check("97.softmax", lambda x: x + 3)
    assert last.hint_number == 0 and "Hint" not in repr(last)  # there is no other one


def test_the_same_wrong_answer_again_offers_no_hint():
    for _ in range(3):
        assert check("97.softmax", shortcut).hint_number == 0


def test_the_first_hint_speaks_of_the_property_that_failed():
    @exercise_check("97.hints", hints=("Begin anywhere.", "Then go on.", "return x"))
    def hints(answer):
        with answer.property("one", hint="One is a number."):
            answer.matches(1, 1)
        with answer.property("two"):
            answer.matches(2, 2)

    check("97.hints", lambda x: 0)
    assert hint("97.hints").text == "One is a number." and hint("97.hints").text == "Then go on."
    progress._in_memory.exercises.pop("97.hints")
    check("97.hints", lambda x: 1)
    assert hint("97.hints").text == "What does not hold yet: two. Begin anywhere."


def test_what_is_wrong_is_said_before_the_two_values_are_shown():
    for text in (repr(result := check("97.softmax", no_maximum)), result._repr_html_()):
        order = ("This looks like:", "problem", "why", "called", "got", "expected")
        places = [min(m.start() for m in re.finditer(f"(?m)(>|^ +){each}(<| )", text)) for each in order]
        assert places == sorted(places)


def raises_with_a_message(x):
    raise NotImplementedError("not for this dtype")


def written_for_one_shape(x):
    if x.shape == (3, 4):
        return right(x)
    raise NotImplementedError


@pytest.mark.parametrize("answer", [raises_with_a_message, written_for_one_shape])
def test_an_answer_that_raises_not_implemented_itself_is_written(answer):
    result = check("97.softmax", answer)
    assert result.failure.kind == "error" and "it raised NotImplementedError" in result.failure.message


def test_an_answer_that_takes_too_long_is_stopped_and_its_line_is_shown(monkeypatch):
    def endless(x):
        while True:
            try:
                x = x + 1
            except Exception:
                pass

    monkeypatch.setattr(attempts, "SECONDS", 0.3)
    monkeypatch.setattr(limits, "CLOCK", 300)  # on a busy machine, too
    result = check("97.softmax", endless)
    assert "it took longer than 0.3 s of processor time" in result.failure.message and result.misconception is None
    assert re.search(r"line \d+ of the cell: ", result.failure.message)
    monkeypatch.undo()
    assert check("97.softmax", right)


def test_the_check_says_what_it_is_doing():
    said = []
    run_check(get_check("97.softmax"), get_check("97.softmax").local_runner(columns), report=said.append)
    assert said == ["rows sum to one", "which mistake is it?"]


def test_inputs_are_drawn_from_the_seed():
    def inputs(seed):
        seen = []

        def answer(x):
            seen.append(x.clone())
            return right(x)

        run_check(get_check("97.softmax"), get_check("97.softmax").local_runner(answer), seed=seed)
        return torch.cat([x.flatten() for x in seen])

    assert torch.equal(inputs(0), inputs(0)) and not torch.equal(inputs(0), inputs(1))


@pytest.mark.parametrize("wrong", [torch.zeros(2), 3, None])
def test_a_value_in_place_of_the_function_is_misuse(wrong):
    with pytest.raises(TypeError, match=r"takes your function itself, as in check\('97.softmax', softmax\)"):
        check("97.softmax", wrong)


def test_an_unknown_exercise_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean 97.softmax"):
        check("97.softmx", right)
    with pytest.raises(KeyError, match="did you mean 00.next_token"):
        get_check("00.next_tokn")


def test_html_is_escaped_and_reads_without_colour():
    @exercise_check("97.tags")
    def tags(answer):
        with answer.property("a < b & c", why="<b>"):
            answer.matches("</div>", 1)

    card = check("97.tags", lambda x: "<script>")._repr_html_()
    assert "<script>" not in card and "&lt;script&gt;" in card and "a &lt; b &amp; c" in card and "✗" in card
    assert card.count("<div") == card.count("</div>")


def test_a_badly_written_check_raises_an_error():
    @exercise_check("97.empty")
    def empty(answer):
        pass

    @exercise_check("97.outside")
    def outside(answer):
        answer(1)

    @exercise_check("97.idle")
    def idle(answer):
        with answer.property("nothing"):
            pass

    @exercise_check("97.nested")
    def nested(answer):
        with answer.property("one"), answer.property("two"):
            pass

    for id, message in (
        ("97.empty", "shows no property"),
        ("97.outside", "inside `with answer.property"),
        ("97.idle", "never called the answer"),
        ("97.nested", "end that one first"),
    ):
        with pytest.raises(RuntimeError, match=message):
            check(id, right)
    with pytest.raises(ValueError, match="97.softmax has two checks"):
        exercise_check("97.softmax")(lambda answer: None)
    with pytest.raises(ValueError, match="two misconceptions with the message"):
        misconception("97.softmax", "You forgot the maximum.")(right)


def test_a_check_can_ask_for_an_exception():
    @exercise_check("97.refuses")
    def refuses(answer):
        with answer.property("a negative size is refused", why="It cannot be."):
            answer.raises(ValueError, -1)

    def right_refusal(n):
        raise ValueError("n must be positive")

    def wrong_refusal(n):
        raise TypeError("n")

    assert check("97.refuses", right_refusal)
    assert "expected ValueError for these arguments, got TypeError" in repr(check("97.refuses", wrong_refusal))
    assert "got no error" in repr(check("97.refuses", lambda n: n))


def test_low_precision_is_held_to_twice_the_naive_error():
    @exercise_check("97.sum")
    def sums(answer):
        with answer.property("a sum in float16", why="Errors add up."):
            x = answer.randn(4, 1000).half()
            answer.accurate(answer(x), x.double().sum(-1), x.sum(-1))

    assert check("97.sum", lambda x: x.float().sum(-1).half())
    assert check("97.sum", lambda x: x.sum(-1))
    for wrong in (lambda x: x.sum(-1) * 1.02, lambda x: x.sum(-1) * float("nan"), lambda x: x.float().sum(-1)):
        assert not check("97.sum", wrong)


def test_kernel_traffic_beyond_its_bounds_is_rejected_where_it_is_counted():
    class Moves:
        def __init__(self, loaded, stored, watched=True):
            self.moved = {"bytes_loaded": loaded, "bytes_stored": stored, "watched": watched}

        def run(self, args, kwargs):
            return Run(value=1, **self.moved)

    @exercise_check("97.moves")
    def moves(answer):
        with answer.property("16 bytes in, 8 out", why="No more are needed."):
            answer.traffic(answer(), loaded=16, stored=8)

    def tell(*moved):
        result = run_check(moves, Moves(*moved))
        return result.failure.message if result.failure else ""

    assert tell({"a": 8, "b": 8}, {"y": 8}) == tell({"a": 4}, {"y": 8}) == ""
    assert tell({}, {}, False) == ""  # compiled: nobody counts
    assert tell({}, {}) == "it stored 0 bytes, where the result has 8"  # whatever it did, no kernel did it
    assert tell({"a": 8, "b": 16}, {"y": 8}) == "it loaded 24 bytes, where 16 are enough"
    assert tell({"a": 8}, {"y": 16}) == "it stored 16 bytes, where the result has 8"
    assert tell({"a": 8}, {}) == "it stored 0 bytes, where the result has 8"


class Counted:
    """A runner of a kernel that made these multiply-adds, with so many tl.dot."""

    def __init__(self, multiply_adds, dots=0, watched=True):
        self.counts = {"multiply_adds": multiply_adds, "operations": {"dot": dots}, "watched": watched}

    def run(self, args, kwargs):
        return Run(value=1, **self.counts)


@pytest.mark.parametrize(
    "counted, says",
    [
        (Counted({"fp16": 64}, 2), ""),
        (Counted({}, 0, watched=False), ""),  # compiled: nobody counts
        (Counted({}), "tl.dot made no multiply-adds of 64"),
        (Counted({"fp16": 32}, 1), "tl.dot made 32 in fp16 multiply-adds of 64"),
        (Counted({"fp16": 96}, 3), "its products took 96 in fp16 multiply-adds, where 64 in fp16 are enough"),
        (Counted({"fp32": 64}, 2), "its products took 64 in fp32 multiply-adds"),
        (Counted({"fp16": 64}, 4), "it took 4 × tl.dot, where 2 × tl.dot are enough: its tiles are smaller than asked"),
    ],
)
def test_products_are_counted_and_so_are_the_tiles_that_they_are_made_of(counted, says):
    @exercise_check("97.products")
    def products(answer):
        with answer.property("two products of tiles"):
            run = answer()
            answer.products(run, 64, "fp16")
            answer.tiles(run, dots=2)

    result = run_check(products, counted)
    assert bool(result) is not bool(says) and says in (result.failure.message if result.failure else "")


def test_kernels_that_stray_elsewhere_or_store_less_are_not_wrong_alike():
    def ended(value=1, place="lane 3", stored=8):
        found = (Finding("store outside", "…", place),) if place else ()
        return Run(value=value, findings=found, bytes_stored={"y": stored}, watched=True)

    _, alike = FAULTS["memory"]
    assert alike(ended(), ended()) and not alike(ended(), ended(place="lane 4"))
    assert not alike(ended(), ended(value=2)) and not alike(ended(), ended(stored=4))


def test_a_misconception_about_reads_or_bytes_is_recognised_by_that_figure():
    @exercise_check("97.reads")
    def reads(answer):
        with answer.property("x is read twice", why="It is long."):
            run = answer(answer.randn(8))
            answer.that(run, lambda run: run.reads[0] == 2, "two reads", by=lambda run: run.reads[0])

    @misconception("97.reads", "You read x three times.")
    def three(x):
        return (x + x + x) * 0

    named = check("97.reads", lambda x: (x * x + x) * 0).misconception
    assert named is not None and named.function is three
    assert check("97.reads", lambda x: x * 0).misconception is None  # the same value, but one read


def test_a_misconception_is_recognised_up_to_the_rounding_that_the_check_allows():
    @exercise_check("97.rounded")
    def rounded(answer):
        with answer.property("x, more or less", why=""):
            answer.matches(torch.ones(3), torch.ones(3), rtol=1e-2)
        with answer.property("and so is another", why=""):
            answer.matches(torch.full((3,), 2.0), torch.full((3,), 2.0), rtol=1e-2)

    @misconception("97.rounded", "You give 1, whatever x is.")
    def ones(x):
        return torch.ones_like(x)

    assert check("97.rounded", lambda x: torch.full_like(x, 1.005)).misconception.function is ones
    assert check("97.rounded", lambda x: torch.where(x == 1, 1.005, 1.5)).misconception is None


def test_of_two_misconceptions_that_fit_the_one_that_fits_more_is_named():
    @exercise_check("97.ties")
    def ties(answer):
        with answer.property("any number, or its opposite", why=""):
            run = answer(2)
            answer.that(run, lambda r: abs(r.value) == 2, "2 or -2")
        with answer.property("zero", why=""):
            answer.matches(1, 0)

    misconception("97.ties", "It gives x.")(lambda x: x)
    misconception("97.ties", "It gives -x.")(lambda x: -x)
    assert check("97.ties", lambda x: 0 - x).misconception.message == "It gives -x."
    assert check("97.ties", lambda x: 0 + x).misconception.message == "It gives x."


def test_lesson_modules_are_found_by_number():
    assert get_check("00.next_token").id == "00.next_token"
    assert len(misconceptions_of("00.next_token")) >= 4 and misconceptions_of("96.none") == []
    assert diagnosis._registry and checks._registry
