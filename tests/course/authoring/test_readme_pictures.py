"""The pictures that the README shows are those that the code draws today."""

from pathlib import Path

import pytest

from llmsys.course.authoring.readme_pictures import readme_pictures

IMAGES = Path(__file__).resolve().parents[3] / "lessons" / "images"


@pytest.fixture(scope="module")
def pictures():
    return readme_pictures()


def test_the_committed_pictures_are_up_to_date(pictures, tmp_path):
    assert set(pictures) == {path.name for path in IMAGES.glob("*.svg")}
    for name, picture in pictures.items():
        now = picture.save(tmp_path / name).read_text(encoding="utf-8")
        remedy = f"{name}: regenerate it with python -m llmsys.course.authoring.readme_pictures"
        assert (IMAGES / name).read_text(encoding="utf-8") == now, remedy
