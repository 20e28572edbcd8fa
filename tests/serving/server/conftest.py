"""The model that is served, and a server for those tests that leave it as it was.

What these are made of is in `running`, which needs the serving extra: so it is imported where it is used.
"""

import pytest


@pytest.fixture(scope="session")
def model():
    from tests.serving.server.running import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def served(model):
    """One for all tests of a module that leave it as it was."""
    from tests.serving.server.running import serving

    with serving(model) as running:
        yield running


@pytest.fixture(autouse=True)
def left_as_it_was(request):
    """What a test of the shared server leaves in it is a leak."""
    yield
    if "served" in request.fixturenames:
        request.getfixturevalue("served").wait_until_empty()
