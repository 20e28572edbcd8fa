"""A picture says what it shows, takes the page's colours and shares no id with another."""

import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style
from llmsys.viz.kit.svg import Svg


def a_chart(label="a < b & c"):
    with chart_style():
        figure, axes = plt.subplots()
        axes.plot([1, 2, 3], [3, 1, 2], "o-", color=LIGHT["blue"])
        axes.set_title(label, fontweight="bold")
        axes.set_xlim(1.5, 2.5)  # what lies outside is clipped, by reference to an id
    return chart(figure, alt=f'three points, "{label}"')


@pytest.fixture(params=["drawing", "chart"])
def picture(request):
    if request.param == "chart":
        return a_chart()
    svg = Svg(40, 20, alt='three points, "a < b & c"')
    svg.rect(0, 0, 10, 10, "blue")
    return svg.picture()


def test_a_notebook_gets_an_svg_with_a_role_and_a_terminal_its_words(picture):
    bundle = picture._repr_mimebundle_()
    root = ElementTree.fromstring(bundle["text/html"])
    assert (root.tag.rpartition("}")[2], root.get("role")) == ("svg", "img")
    assert root.get("aria-label") == bundle["text/plain"] == repr(picture) == 'three points, "a < b & c"'


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_picture_without_words_is_refused(alt):
    with pytest.raises(ValueError, match="alt must say in words"):
        Picture("<svg/>", alt)


def test_a_saved_file_stands_alone(picture, tmp_path):
    path = picture.save(tmp_path / "new" / "p.svg")
    root = ElementTree.parse(path).getroot()
    assert "alone" in root.get("class").split()
    assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")


def test_a_charts_colours_are_the_pages():
    picture = a_chart()
    assert "var(--blue)" in picture.svg and "var(--ink)" in picture.svg
    values = set(re.findall(r"#[0-9a-f]{6}", picture.svg))
    assert not values & set(LIGHT.values())
    assert "<text" in picture.svg and "DejaVu" not in picture.svg  # text stays text, in the page's font
    assert not plt.get_fignums()  # closed: a notebook would show it again
    assert picture.figure.axes[0].get_title("left") == "a < b & c"


def test_charts_share_no_id_and_refer_to_none_but_their_own():
    one, other = a_chart("one").svg, a_chart("two").svg
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    used = [set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) for svg in (one, other)]
    assert ids == used and all(ids) and not ids[0] & ids[1]


def test_a_chart_is_the_same_each_time_it_is_drawn():
    assert a_chart().svg == a_chart().svg
