import pytest
import torch

SIDE_BY_SIDE = {
    "test_any_size_on_gpu",
    "test_bytes_on_gpu",
    "test_clauses_on_gpu",
    "test_contract_on_gpu",
    "test_division_on_gpu",
    "test_head_major_on_gpu",
    "test_library_on_gpu",
    "test_memory_on_gpu",
    "test_support_on_gpu",
    "test_triton_launcher",
}
"""Modules that ask for bytes only, which no other process on the GPU changes. Any other one is `alone`."""


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" not in item.path.parts:
            continue
        if item.path.stem not in SIDE_BY_SIDE:
            item.add_marker(pytest.mark.alone)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
