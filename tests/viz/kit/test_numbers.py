"""Numbers as people write them, in every size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.viz.kit.numbers import number, rate, seconds_in_words, size_in_words, subscript, superscript


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.0, "3"), (-0.5, "−0.5"), (2.0 / 3, "0.667"), (1234.5, "1234"), (0.0821, "0.0821"), (1e-9, "10⁻⁹"),
     (-2.5e-7, "−2.5·10⁻⁷"), (3.4e38, "3.4·10³⁸"), (float("inf"), "∞"), (float("-inf"), "−∞"), (float("nan"), "NaN")],
)  # fmt: skip
def test_numbers_as_people_write_them(value, text):
    assert number(value) == text


@given(st.floats(-1e30, 1e30).filter(lambda x: abs(x) > 1e-30))
def test_a_number_says_its_first_digits(x):
    text = number(x).replace("−", "-")
    if "10" in text and any(c in text for c in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"):
        mantissa, _, power = text.rpartition("10")
        digits = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        text = f"{mantissa.rstrip('·') + ('1' if mantissa in ('', '-') else '')}e{digits}"
    assert float(text) == pytest.approx(x, rel=0.051)


def test_superscripts_and_subscripts():
    assert subscript(12) == "₁₂" and superscript(-40) == "⁻⁴⁰"


@pytest.mark.parametrize(
    "count, said", [(512, "512 bytes"), (1 << 20, "1 MiB"), (132 << 20, "132 MiB"), (1 << 40, "1 TiB")]
)
def test_sizes_are_said_in_the_largest_unit_that_fits(count, said):
    assert size_in_words(count) == said


@pytest.mark.parametrize(("seconds", "words"), [(1.5e-9, "1.5 ns"), (9.999e-7, "1 µs"), (41.26e-6, "41.3 µs"),
                                                (0.99996, "1 s"), (1234.5, "1,234 s")])  # fmt: skip
def test_times_have_three_digits_and_a_unit(seconds, words):
    assert seconds_in_words(seconds) == words


def test_rates_are_those_of_data_sheets():
    assert [rate(each) for each in (989.5e12, 2250e12, 90e9)] == ["989.5 TFLOP/s", "2,250 TFLOP/s", "90 GFLOP/s"]
