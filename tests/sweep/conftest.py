import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def importable():
    """The measuring process finds tests.helpers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        yield
