"""Lesson 02's opening picture: its numbers are the library's."""

from llmsys.attention import online
from llmsys.viz.online_softmax import overview


def test_the_overview_shows_the_librarys_numbers(monkeypatch):
    picture = overview()
    assert "Two passes over memory instead of three" in picture.alt
    monkeypatch.setattr(online, "merge", lambda a, b: online.Partial(a.m.maximum(b.m), a.l + b.l))
    assert overview().svg != picture.svg
