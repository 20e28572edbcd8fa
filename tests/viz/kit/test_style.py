"""The palette keeps what it promises: text is readable in both themes, and colour-blind eyes tell the hues apart."""

from itertools import combinations

import pytest

from llmsys.viz.kit.style import DARK, HUES, LIGHT, ROOT, contrast, linear, stylesheet

# Machado, Oliveira and Fernandes, 2009, severity 1, on linear RGB.
VISION = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)
JUST_NOTICEABLE = 2.3


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def lab(colour, vision):
    """CIELAB of a colour as it looks to such eyes: distances in it are differences as seen."""
    seen = [min(max(c, 0), 1) for c in times(VISION[vision], linear(colour))]
    relative = [v / w for v, w in zip(times(XYZ, seen), WHITE, strict=True)]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in relative)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(one, other, vision):
    return sum((a - b) ** 2 for a, b in zip(lab(one, vision), lab(other, vision), strict=True)) ** 0.5


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#ffffff", "#ffffff") == 1
    assert contrast("#777777", "#ffffff") == contrast("#ffffff", "#777777") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read_on_the_page_and_on_a_panel(theme):
    for ink in ("ink", "muted", *HUES):
        for ground in ("surface", "panel"):
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_ink_can_be_read_on_soft_areas_and_the_page_colour_on_strong_ones(theme):
    for hue in HUES:
        assert contrast(theme["ink"], theme[f"{hue}-soft"]) >= 7, hue
        assert contrast(theme["surface"], theme[hue]) >= 4.5, hue


def test_jupyterlabs_own_text_and_page_colours_have_enough_contrast_too():
    """JupyterLab's text and page, which stand in for `ink` and `surface`: white at 87% on #111, black on white."""
    for theme, ink, page in ((LIGHT, "#212121", "#ffffff"), (DARK, "#dfdfdf", "#111111")):
        for ground in (page, theme["panel"], *(theme[f"{hue}-soft"] for hue in HUES)):
            assert contrast(ink, ground) >= 7
        for hue in (*HUES, "muted"):
            assert contrast(theme[hue], page) >= 4.5


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_hues_stay_apart_for_colour_blind_eyes(theme, vision):
    for one, other in combinations((*HUES, "muted"), 2):
        assert distance(theme[one], theme[other], vision) >= 5 * JUST_NOTICEABLE, (one, other)


def test_the_sheet_has_every_colour_in_both_themes_and_rules_only_under_its_root():
    sheet = stylesheet()
    for name in LIGHT:
        assert sheet.count(f"--{name}:") == 3, name  # light, dark in a page, dark in a file
        assert f".{ROOT} .{name}{{" in sheet and f".{ROOT} .line-{name}{{" in sheet
    assert LIGHT.keys() == DARK.keys()
    assert not set("<>&") & set(sheet)  # it stands inside SVG, which is XML
