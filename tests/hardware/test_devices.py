"""Data sheets agree with each other and with what is known; this machine is measured once, and then remembered."""

import dataclasses
import json

import pytest
import torch

from llmsys.hardware import devices
from llmsys.hardware.devices import DEVICES, DeviceSpec, detect, this_machine


def test_the_devices_of_the_course_are_there():
    assert {"H100 SXM", "H200", "H800", "A100 80GB SXM", "B200", "RTX 4090", "Apple M3 Max", "Apple M4"} == set(DEVICES)


@pytest.mark.parametrize("spec", DEVICES.values(), ids=lambda spec: spec.name)
def test_a_spec_is_whole_and_plausible(spec):
    assert DEVICES[spec.name] is spec and "http" in spec.source
    assert 2**34 <= spec.memory_bytes <= 2**38 and 1e11 <= spec.bandwidth <= 1e13
    assert spec.flops["float32"] <= spec.flops["float16"]
    assert 1 <= spec.flops_per_byte("float32") < 100, "float32 outside tensor cores"
    assert spec.l2_bytes is None or spec.l2_bytes < spec.memory_bytes


@pytest.mark.parametrize("name", ["H100 SXM", "H200", "H800", "A100 80GB SXM", "B200"])
def test_tensor_core_figures_are_dense_and_double_with_every_halving_of_the_type(name):
    # What the chip's clock allows, from the operations of an SM in a cycle (CUDA programming guide; white papers):
    # a sparse figure, or one of another type, would need twice the clock.
    spec = DEVICES[name]
    per_cycle = {"A": 2048, "H": 4096, "B": 8192}[name[0]]
    clock = spec.flops["bfloat16"] / spec.sms / per_cycle
    assert 1.3e9 < clock < 2.0e9
    for wide, narrow in (("tf32", "bfloat16"), ("bfloat16", "float8"), ("float8", "float4")):
        if wide in spec.flops and narrow in spec.flops:
            assert spec.flops[narrow] == pytest.approx(2 * spec.flops[wide], rel=0.03)


@pytest.mark.parametrize(
    ("name", "per_cycle"),  # FLOP of 16-bit types, summed in float32, by one SM in a cycle
    [("H100 SXM", 4096), ("H200", 4096), ("H800", 4096), ("A100 80GB SXM", 2048), ("B200", 8192), ("RTX 4090", 512)],
)
def test_the_units_of_a_multiprocessor_run_at_the_clock_of_its_tensor_cores(name, per_cycle):
    spec = DEVICES[name]
    clock = spec.flops["float16"] / spec.sms / per_cycle
    assert spec.sram_bandwidth / spec.sms / 128 == pytest.approx(clock, rel=0.005)
    assert spec.exponentials / spec.sms / 16 == pytest.approx(clock, rel=0.005)


def test_nearer_memory_is_faster():
    for spec in DEVICES.values():
        rates = [rate for rate in (spec.bandwidth, spec.l2_bandwidth, spec.sram_bandwidth) if rate is not None]
        assert rates == sorted(rates)
    assert DEVICES["H100 SXM"].exponentials == pytest.approx(3.9e12, rel=0.01), "https://arxiv.org/abs/2407.08608"


def test_an_h800_is_an_h100_with_less_nvlink():
    h100, h800 = DEVICES["H100 SXM"], DEVICES["H800"]
    assert h800.interconnect == 400e9 < h100.interconnect == 900e9
    assert h800.flops == h100.flops and h800.bandwidth == h100.bandwidth


def test_flops_per_byte_is_the_quotient_of_peak_and_bandwidth():
    assert DEVICES["H100 SXM"].flops_per_byte("bfloat16") == pytest.approx(295, abs=1)
    with pytest.raises(ValueError, match="dtype must be one of float32.* on A100 80GB SXM, got 'float8'"):
        DEVICES["A100 80GB SXM"].flops_per_byte("float8")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_exact_name(name, expected):
    found = detect(name)
    assert (found and found.name) == expected


def test_without_a_gpu_none_is_detected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detect() is None


@pytest.fixture
def measured_quickly(monkeypatch):
    """Real measurements, of a few milliseconds; the list grows with each."""
    measure, seconds, done = devices._measure, devices._seconds, []
    monkeypatch.setattr(devices, "_seconds", lambda run: seconds(run, budget=0.01))
    monkeypatch.setattr(devices, "_measure", lambda: done.append(measure()) or done[-1])
    return done


def test_this_machine_is_measured_once_and_remembered(tmp_path, measured_quickly):
    path = tmp_path / "deep" / "machine.json"
    first = this_machine(path)
    assert this_machine(path) == first and len(measured_quickly) == 1
    assert first.bandwidth > 1e8 and first.flops["float32"] > 1e8 and first.memory_bytes > 2**30
    assert first.name and "measured here on 2" in first.source
    assert [p.name for p in path.parent.iterdir()] == ["machine.json"]
    this_machine(path, refresh=True)
    assert len(measured_quickly) == 2


@pytest.fixture
def measured_at_once(monkeypatch):
    spec = DeviceSpec("made up", 1, 1.0, {"float32": 1.0}, None, None, None, None, "a test")
    monkeypatch.setattr(devices, "_measure", lambda: dataclasses.replace(spec))
    return spec


@pytest.mark.parametrize("kept", ["", "{", "[]", "null", '{"key": 1, "spec": [1]}', '{"key": "another", "spec": {}}'])
def test_a_file_that_is_not_of_this_machine_is_replaced(tmp_path, measured_at_once, kept):
    path = tmp_path / "machine.json"
    path.write_text(kept)
    assert this_machine(path) == measured_at_once
    assert json.loads(path.read_text())["spec"]["name"] == "made up"


def test_a_file_of_an_older_version_is_replaced(tmp_path, measured_at_once):
    path = tmp_path / "machine.json"
    this_machine(path)
    kept = json.loads(path.read_text())
    del kept["spec"]["exponentials"]
    path.write_text(json.dumps(kept))
    assert this_machine(path) == measured_at_once and "exponentials" in path.read_text()


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, measured_at_once):
    (tmp_path / "file").write_text("")
    assert this_machine(tmp_path / "file" / "machine.json") == measured_at_once


def test_the_default_cache_is_the_users(tmp_path, monkeypatch, measured_at_once):
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    this_machine()
    assert (tmp_path / "llmsys" / "this_machine.json").is_file()


@pytest.mark.gpu
def test_a_gpu_is_measured_near_its_data_sheet(tmp_path):
    measured = this_machine(tmp_path / "machine.json")
    assert measured.flops["bfloat16"] > measured.flops["float32"]
    sheet = detect()
    if sheet is not None:
        assert 0.5 * sheet.bandwidth < measured.bandwidth <= sheet.bandwidth
        assert 0.4 * sheet.flops["bfloat16"] < measured.flops["bfloat16"] <= sheet.flops["bfloat16"]
        assert measured.sms == sheet.sms and measured.l2_bytes == pytest.approx(sheet.l2_bytes, rel=0.05)
        assert measured.memory_bytes == pytest.approx(sheet.memory_bytes, rel=0.05)
