"""Where `hydra.launcher.devices` and `workers` have curves measured."""

from types import SimpleNamespace

import pytest

from kvexp.errors import ConfigError, Unsupported
from kvexp.gpu import nvml
from kvexp.sweep.place import HERE, list_places

UUIDS = ["GPU-aa", "GPU-ab", "GPU-b"]


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = SimpleNamespace(
        nvmlDeviceGetCount=lambda: len(UUIDS),
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetUUID=UUIDS.__getitem__,
    )
    monkeypatch.setattr(nvml, "load_nvml", lambda: library)


def places(devices=None, workers=1, asked=("auto",), isolation="process"):
    return list_places(devices, workers, [SimpleNamespace(device=device) for device in asked], isolation)


def test_without_either_each_curve_names_its_device():
    assert places() is places(asked=("cuda:0", "cpu"), isolation="inline") is HERE


@pytest.mark.parametrize(
    ("devices", "names", "first"),
    [("all", ["GPU 0", "GPU 1", "GPU 2"], UUIDS), ([2, 0], ["GPU 2", "GPU 0"], ["GPU-b", "GPU-aa"])],
)
def test_each_gpu_is_a_place_whose_process_sees_the_others_after_its_own(devices, names, first):
    found = places(devices)
    assert [place.name for place in found] == names
    assert {place.device for place in found} == {"cuda:0"}
    assert [place.visible.split(",")[0] for place in found] == first
    assert all(sorted(place.visible.split(",")) == UUIDS for place in found)


def test_workers_measure_on_the_cpu():
    assert [(place.name, place.device) for place in places(workers=2, asked=("cpu",))] == [
        ("worker 0", "cpu"),
        ("worker 1", "cpu"),
    ]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("2,0", ["GPU-b", "GPU-aa"]),
        ("GPU-b", ["GPU-b"]),
        ("GPU-a,GPU-b", []),  # the first could be either
        ("1,7,0", ["GPU-ab"]),
        ("1,1,0", ["GPU-ab"]),
        ("", []),
        ("-1", []),
    ],
)
def test_the_gpus_are_those_that_cuda_sees(visible, seen, monkeypatch):
    assert nvml.list_gpus(visible) == seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if seen:
        assert [place.visible.split(",")[0] for place in places("all")] == seen


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"devices": "every"}, "hydra.launcher.devices must be all or a list as '[0,1]', not 'every'"),
        ({"devices": []}, "hydra.launcher.devices must be all or a list as '[0,1]', not []"),
        ({"devices": ["0"]}, "hydra.launcher.devices must be all or a list as '[0,1]', not ['0']"),
        ({"devices": [True]}, "hydra.launcher.devices must be all or a list as '[0,1]', not [True]"),
        ({"devices": [0, 3]}, "hydra.launcher.devices names the GPU 3, and there are 3, from 0 on"),
        ({"devices": [-1]}, "hydra.launcher.devices names the GPU -1, and there are 3, from 0 on"),
        ({"devices": [1, 1]}, "hydra.launcher.devices names the GPU 1 twice"),
        ({"workers": 0}, "hydra.launcher.workers must be a number from 1 to 1024, not 0"),
        ({"workers": "two"}, "hydra.launcher.workers must be a number from 1 to 1024, not 'two'"),
        ({"workers": True}, "hydra.launcher.workers must be a number from 1 to 1024, not True"),
        (
            {"devices": "all", "asked": ("cuda:1",)},
            "device=cuda:1 and hydra.launcher.devices both say where to measure; type one of them",
        ),
        (
            {"devices": "all", "workers": 2},
            "hydra.launcher.workers is for the CPU and hydra.launcher.devices for GPUs; type one of them",
        ),
        (
            {"workers": 2},
            "hydra.launcher.workers=2 needs device=cpu, not device=auto; hydra.launcher.devices names GPUs",
        ),
        (
            {"workers": 2, "asked": ("cpu",), "isolation": "inline"},
            "isolation=inline measures in this process, and hydra.launcher.devices and "
            "hydra.launcher.workers start others; leave one of them out",
        ),
    ],
)
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(ConfigError) as refused:
        places(**asked)
    assert str(refused.value) == said


@pytest.mark.parametrize("why", [Unsupported("no NVIDIA driver (x)"), ImportError("no pynvml")])
def test_a_machine_without_gpus_says_so(why, monkeypatch):
    def fail():
        raise why

    monkeypatch.setattr(nvml, "load_nvml", fail)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.devices=all needs GPUs: "):
        places("all")


def test_parts_of_a_gpu_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=MIG-7 names a part of a GPU"):
        places("all")


def test_a_machine_without_any_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.devices=all names no GPU"):
        places("all")
