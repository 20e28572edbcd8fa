"""The builder of drawings: well-formed XML whatever the text, and shapes where they were put."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from llmsys.viz.kit.svg import Svg

SVG = "{http://www.w3.org/2000/svg}"
printable = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")))


def parsed(svg: Svg) -> ElementTree.Element:
    return ElementTree.fromstring(svg.picture().html())


@given(alt=printable.filter(str.strip), text=printable, classes=printable)
def test_any_text_is_escaped_and_comes_back_whole(alt, text, classes):
    svg = Svg(10, 10, alt=alt)
    svg.text(1, 2, [(text.replace("^{", "^"), classes)], classes)
    root = parsed(svg)
    assert root.get("aria-label") == alt and root.get("role") == "img"
    drawn = root.find(f"{SVG}text")
    assert "".join(drawn.itertext()) == text.replace("^{", "^")
    assert (drawn.get("class") or "") == classes


def test_a_power_is_raised_and_what_follows_comes_back_down():
    svg = Svg(10, 10, alt="a power")
    svg.text(0, 0, ["ℓ = e^{x − m} / ", ("2", "green")])
    text = parsed(svg).find(f"{SVG}text")
    assert "".join(text.itertext()) == "ℓ = ex − m / 2"
    assert sum(float(span.get("dy", 0)) for span in text) == 0
    assert [span.text for span in text if span.get("font-size")] == ["x − m"]


def test_shapes_are_where_they_were_put():
    svg = Svg(100, 50, alt="shapes")
    with svg.group(x=5, y=7):
        svg.rect(1.25, 2, 30, 40, "blue-soft settle", style="--scale:2")
    svg.line((0, 0), (10, 10))
    svg.arrow((0, 0), (20, 0), "orange")
    svg.bracket(10, 50, 30, "a tile")
    svg.circle(3, 4, 5, "green")
    root = parsed(svg)
    rect = root.find(f"{SVG}g/{SVG}rect")
    assert root.find(f"{SVG}g").get("transform") == "translate(5 7)"
    assert (rect.get("x"), rect.get("width"), rect.get("style")) == ("1.2", "30", "--scale:2")
    head = root.find(f"{SVG}path[@class='orange']").get("d")
    assert head.startswith("M20 0") and head.endswith("Z")
    assert root.find(f"{SVG}text").text == "a tile" and root.find(f"{SVG}text").get("x") == "30"


def test_an_arrow_without_length_is_drawn_all_the_same():
    svg = Svg(10, 10, alt="a dot")
    svg.arrow((5, 5), (5, 5))
    assert "nan" not in svg.markup()
