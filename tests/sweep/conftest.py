import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvexp.sweep.job import Job
from tests.helpers import compose


@pytest.fixture(autouse=True, scope="module")
def importable():
    """The measuring process finds tests.helpers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        yield


@pytest.fixture
def jobs(tmp_path):
    """Makes a curve of workload=tiny for each mapping of own keys of its implementation."""

    def made(*options, first=0):
        curves = [compose.experiment("workload=tiny", f"workload.seed={n}") for n in range(len(options))]
        curves = [
            replace(curve, impl=replace(curve.impl, options={**curve.impl.options, **own}))
            for curve, own in zip(curves, options, strict=True)
        ]
        home = tmp_path / "2026-12-01" / "10-00-00-000000"
        return [Job(curve, home / str(first + n), ("impl=cuda",)) for n, curve in enumerate(curves)]

    return made
