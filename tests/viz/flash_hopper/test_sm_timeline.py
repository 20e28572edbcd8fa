"""The timeline of an SM: areas are work, and every frame says what the model computed."""

import re
from xml.etree import ElementTree

import pytest

from llmsys.hardware.sm import ENGINES, ORDERS, attention_costs, fa2_order, run
from llmsys.viz.flash_hopper import sm_timeline
from llmsys.viz.flash_hopper.sm_timeline import shares, steps

SVG = "{http://www.w3.org/2000/svg}"


def area(path):
    """Of a closed polygon."""
    points = [tuple(map(float, point.split())) for point in path.strip("MZ").split("L")]
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True))) / 2


@pytest.fixture(params=[(128, 2), (64, 3)], ids=["two warpgroups", "three warpgroups"])
def timelines(request):
    D, warpgroups = request.param
    return {name: run(order(5, warpgroups), attention_costs(D=D)) for name, order in ORDERS.items()}


def test_a_spans_share_of_its_engine_is_the_work_that_it_is(timelines):
    for timeline in timelines.values():
        for engine in ENGINES:
            mine = [share for share in shares(timeline) if share.span.engine == engine]
            work = sum((end - start) / n for share in mine for start, end, _, n in share.pieces)
            assert work == pytest.approx(timeline.busy[engine], abs=0.1)
        products = [share for share in shares(timeline) if share.span.engine == "tensor"]
        each = [sum((end - start) / n for start, end, _, n in share.pieces) for share in products]
        assert each == pytest.approx([each[0]] * len(each), abs=0.1)  # S and O cost the same, shared or not


def test_shares_follow_each_other_and_do_not_lie_on_each_other(timelines):
    for timeline in timelines.values():
        taken = []
        for share in shares(timeline):
            assert share.pieces[0][0] == pytest.approx(share.span.start)
            assert share.pieces[-1][1] == pytest.approx(share.span.end)
            assert all(one[1] == other[0] for one, other in zip(share.pieces, share.pieces[1:], strict=False))
            taken += [(share.span.engine, start, end, k / n, (k + 1) / n) for start, end, k, n in share.pieces]
        for n, one in enumerate(taken):
            for other in taken[:n]:
                apart = one[0] != other[0] or one[1] >= other[2] or other[1] >= one[2]
                assert apart or one[3] >= other[4] - 1e-9 or other[3] >= one[4] - 1e-9, (one, other)


def test_the_intervals_are_the_timeline_from_its_beginning_to_its_end(timelines):
    for name, timeline in timelines.items():
        frames = steps(timelines, name)
        assert (frames[0].start, frames[-1].end) == (0, pytest.approx(timeline.cycles))
        assert all(one.end == other.start for one, other in zip(frames, frames[1:], strict=False))
        for engine in ENGINES:
            busy = sum(frame.end - frame.start for frame in frames if frame.active(engine))
            assert busy == pytest.approx(timeline.busy[engine], abs=0.1)


@pytest.mark.parametrize("order", ORDERS)
def test_every_frame_is_legible_and_says_what_each_engine_does(order, assert_legible, texts):
    stepper = sm_timeline(order=order, tiles=3)
    for index, frame in enumerate(stepper.frames):
        assert_legible(stepper.svg(index))
        said = stepper.html(index).split("Step ")[1]
        for engine, word in zip(ENGINES, ("tensor cores", "softmax", "copy engine"), strict=True):
            labels = {span.label for span in frame.active(engine)}
            part = re.search(rf"{word}: ([^;]*?)[;.]", said)[1]
            assert set(re.findall(r"\b[SOPKV]\d", part)) == labels and (part == "idle") == (not labels)
    assert f"{100 * stepper.frame.timeline.utilisation('tensor'):.0f} %" in texts(stepper.svg(0))


def test_shapes_are_as_large_as_the_work():
    stepper = sm_timeline({"mine": run(fa2_order(3, 2), attention_costs(), begin=[0, 700])}, tiles=3)
    stepper.set(order="overlapped_held")
    paths = [path.get("d") for path in ElementTree.fromstring(stepper.svg(0)).iter(f"{SVG}path")]
    rects = [rect for rect in ElementTree.fromstring(stepper.svg(0)).iter(f"{SVG}rect")]
    sizes = [float(r.get("width")) * float(r.get("height")) for r in rects if r.get("rx") == "0"]
    scale = 562 / min(timeline.cycles for timeline in stepper.frame.timelines.values()) * 42
    work = sum(stepper.frame.timeline.busy.values())
    assert sum(sizes) + sum(map(area, paths)) == pytest.approx(scale * work, rel=0.01)


def test_the_readers_own_timeline_comes_first_and_the_librarys_follow(texts):
    mine = run(fa2_order(6, 2), attention_costs(), begin=[0, 900])
    stepper = sm_timeline({"mine": mine})
    assert stepper.frame.name == "mine" and list(stepper.frame.timelines) == ["mine", *ORDERS]
    assert f"{mine.cycles:,.0f} cycles" in " ".join(texts(stepper.svg(0)))
    stepper.set(order="fa1")
    assert stepper.frame.timeline.cycles > mine.cycles
    with pytest.raises(ValueError, match=r"programs\['mine'\] must be a timeline"):
        sm_timeline({"mine": fa2_order(6, 2)})
    with pytest.raises(ValueError, match=r"programs\['nothing'\] must be a timeline in which something happens"):
        sm_timeline({"nothing": run([], attention_costs())})
    with pytest.raises(ValueError, match="order must be one of 'fa1'.*got 'fa3'"):
        sm_timeline(order="fa3")


def test_the_static_frame_shows_all_engines_at_work():
    stepper = sm_timeline()
    frame = stepper.frames[stepper._static(stepper.frames)]
    assert frame.name == "overlapped_held" and all(frame.active(engine) for engine in ENGINES)
