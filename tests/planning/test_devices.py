"""Facts about simulated machines, ggml's devices on this one, and the advice for a missing GPU."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.decoder import decoder, llama
from bimedix_edge.errors import DecoderError
from bimedix_edge.hardware.advice import Missing, decoder_gpu, missing_gpu_library, vision_cuda
from bimedix_edge.hardware.control_groups import groups
from bimedix_edge.hardware.facts import Backend, ComputeDevice, CudaDriver, Hardware, HugePages, Machine, NvidiaGpu
from bimedix_edge.hardware.machine import inspect_machine
from bimedix_edge.hardware.memory import huge_pages, memory
from bimedix_edge.hardware.processor import count_cores, cpu_name, instruction_sets
from bimedix_edge.planning.devices import inspect_hardware

linux = pytest.mark.skipif(sys.platform != "linux", reason="about Linux")
GIB = 1 << 30
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nHugePages_Free: 3\nHugepagesize: 2048 kB\n"


def tree(root: Path, **files: str) -> Path:
    """Write files under `root`; `__` in a name stands for `/`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@linux
def test_memory_without_groups(tmp_path: Path) -> None:
    root = tree(tmp_path, proc__meminfo=MEMINFO)
    assert memory(root) == (16 * GIB, 8 * GIB)
    assert huge_pages(root) == HugePages(None, 2 << 20, 3)
    tree(tmp_path, sys__kernel__mm__transparent_hugepage__enabled="always [madvise] never\n")
    assert huge_pages(root) == HugePages("madvise", 2 << 20, 3)


@linux
def test_the_smallest_limit_of_a_group_and_its_parents_holds(tmp_path: Path) -> None:
    root = tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b\n")
    group = tmp_path / "sys/fs/cgroup"
    for name, limit, used in (("a", f"{4 * GIB}", 3 * GIB), ("a/b", "max", 1 * GIB)):
        (group / name).mkdir(parents=True)
        (group / name / "memory.max").write_text(limit)
        (group / name / "memory.current").write_text(str(used))
        # the system can drop its page cache
        (group / name / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\n")
    assert memory(root) == (4 * GIB, 3 * GIB)
    assert groups("memory", root) == [group / "a/b", group / "a", group]


@linux
def test_groups_of_version_1(tmp_path: Path) -> None:
    root = tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="9:memory:/job\n4:cpu,cpuacct:/job\n0::/\n")
    tree(
        tmp_path,
        **{
            f"sys__fs__cgroup__memory__job__memory.{key}": value
            for key, value in (
                ("limit_in_bytes", str(2 * GIB)),
                ("usage_in_bytes", str(GIB)),
                ("stat", "total_inactive_file 0\n"),
            )
        },
    )
    tree(tmp_path, **{"sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712"})
    tree(
        tmp_path,
        **{
            f"sys__fs__cgroup__memory__memory.{key}": value
            for key, value in (
                ("usage_in_bytes", str(GIB)),
                ("stat", "total_inactive_file 0\n"),
            )
        },
    )
    assert memory(root) == (2 * GIB, GIB)
    one, half = os.sched_getaffinity(0), tmp_path / "sys/fs/cgroup/cpu"
    for cpu in one:
        tree(tmp_path, **{f"sys__devices__system__cpu__cpu{cpu}__topology__thread_siblings_list": f"{cpu}\n"})
    assert count_cores(root) == len(one)
    half.mkdir(parents=True)
    (half / "cpu.cfs_quota_us").write_text("50000\n")
    (half / "cpu.cfs_period_us").write_text("100000\n")
    assert count_cores(root) == 1
    (half / "cpu.cfs_quota_us").write_text("-1\n")
    assert count_cores(root) == len(one)


@linux
def test_a_path_of_the_host_that_a_container_does_not_see(tmp_path: Path) -> None:
    root = tree(tmp_path, proc__self__cgroup="0::/docker/abc\n", **{"sys__fs__cgroup__cpu.max": "150000 100000\n"})
    assert groups("cpu", root) == [tmp_path / "sys/fs/cgroup"]
    assert count_cores(root) == min(2, count_cores(tmp_path / "nowhere"))


@linux
@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n", ("AVX2", "AVX-512", "AVX-512 VNNI", "AMX")),
        ("flags\t\t: avx2 avx_vnni\n", ("AVX2", "AVX-VNNI")),
        ("Features\t: fp asimd asimddp i8mm sve\n", ("dotprod", "i8mm")),
        ("Features\t: fp asimd\n", ()),
        ("", None),
    ],
)
def test_instruction_sets(cpuinfo: str, expected: tuple[str, ...] | None, tmp_path: Path) -> None:
    assert instruction_sets(tree(tmp_path, proc__cpuinfo=cpuinfo)) == expected


def test_this_machine() -> None:
    machine = inspect_machine()
    assert machine.n_cores == count_cores() >= 1
    assert machine.cpu == cpu_name()
    if sys.platform == "linux":
        assert machine.available_bytes is not None
        assert machine.memory_bytes is not None
        assert 0 < machine.available_bytes <= machine.memory_bytes
        # llama.cpp was compiled on this machine and must have found the same instruction sets
        assert machine.features is not None
        assert ("AVX2" in machine.features) == ("AVX2 = 1" in llama.system_info())


def test_the_devices_of_ggml() -> None:
    hardware = inspect_hardware()
    cpu = next(device for device in hardware.devices if device.kind == "cpu")
    assert (cpu.name, cpu.backend) == ("CPU", "CPU")
    assert cpu.total_bytes == hardware.machine.memory_bytes
    assert cpu.free_bytes == hardware.machine.available_bytes
    assert {device.backend for device in hardware.devices} <= {backend.name for backend in hardware.backends}
    assert sum(backend.n_devices for backend in hardware.backends) == len(hardware.devices)
    assert hardware.providers[-1].name == "CPUExecutionProvider"
    assert hardware.providers[-1].loads
    for provider in hardware.providers:
        assert provider.loads == (provider.reason == "")


def test_the_error_repeats_what_llama_cpp_logs(tmp_path: Path) -> None:
    (tmp_path / "decoder.gguf").write_bytes(b"no model at all")
    spec = DecoderSpec("llama", "F16", 1, 64, 1, 1, 64, 100, 512)
    with pytest.raises(DecoderError, match=r"refuses decoder\.gguf \(.*magic"):
        decoder.Decoder(tmp_path / "decoder.gguf", spec, decoder.DecoderOptions(64, 1, 64, n_threads=1))


GPU = NvidiaGpu("RTX", (8, 9), 8 * GIB, 7 * GIB)
DRIVER = CudaDriver("580.65.06", (13, 0), (GPU,), None)
CPU = ComputeDevice("CPU", "a processor", "cpu", "CPU", 8 * GIB, 16 * GIB)
BARE = Hardware(
    machine=Machine("Linux x86_64", "a processor", 4, 16 * GIB, 8 * GIB),
    backends=(Backend("CPU", 1),),
    backend_faults=(),
    devices=(CPU,),
    providers=(),
    cuda=None,
)
WITH_CUDA = replace(BARE, backends=(Backend("CUDA", 0), Backend("CPU", 1)))
INSUFFICIENT = "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version"


@pytest.mark.parametrize(
    ("hardware", "cause", "remedy"),
    [
        (BARE, "there is no GPU here that this program knows", None),
        (replace(BARE, n_nvidia_cards=1), "no driver for it is installed", "install NVIDIA's current driver"),
        (replace(BARE, cuda=replace(DRIVER, fault="x")), r"driver 580\.65\.06 cannot be used \(x\)", "current driver"),
        (replace(BARE, cuda=DRIVER), "built without CUDA", r"install the CUDA toolkit, then run: CMAKE_ARGS="),
        (
            replace(BARE, cuda=DRIVER, cuda_compiler=True),
            "built without CUDA",
            r'^run: CMAKE_ARGS="-DGGML_CUDA=on" \S+python\S* -m pip install '
            "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36$",
        ),
        (
            replace(BARE, cuda=DRIVER, machine=replace(BARE.machine, system="Windows AMD64")),
            "built without CUDA",
            r'\$env:CMAKE_ARGS = "-DGGML_CUDA=on"; & ',
        ),
        (
            replace(BARE, machine=replace(BARE.machine, system="Darwin arm64")),
            "built without Metal",
            'CMAKE_ARGS="-DGGML_METAL=on"',
        ),
        (replace(WITH_CUDA, n_nvidia_cards=1), "no driver for it is installed", "current driver"),
        (replace(WITH_CUDA, cuda=replace(DRIVER, fault="y", version=None)), r"cannot be used \(y\)", "current driver"),
        (
            replace(WITH_CUDA, cuda=replace(DRIVER, cuda=(11, 4)), backend_faults=(INSUFFICIENT,)),
            r"too old: it runs CUDA up to 11\.4, and a newer one is wanted",
            "current driver and restart the machine, or build llama.cpp with an older CUDA toolkit",
        ),
        (
            replace(WITH_CUDA, cuda=DRIVER, backend_faults=("no",)),
            r"llama.cpp has CUDA, but finds no device for it \(no\)",
            None,
        ),
    ],
)
def test_why_llama_cpp_has_no_gpu(hardware: Hardware, cause: str, remedy: str | None) -> None:
    missing = decoder_gpu(hardware, "0.3.36")
    assert missing is not None
    assert re.search(cause, missing.cause)
    assert missing.remedy is None if remedy is None else re.search(remedy, missing.remedy or "")


def test_nothing_is_missing_where_there_is_a_gpu() -> None:
    card = ComputeDevice("CUDA0", "RTX", "gpu", "CUDA", 7 * GIB, 8 * GIB)
    assert decoder_gpu(replace(WITH_CUDA, cuda=DRIVER, devices=(card, CPU)), "0.3.36") is None
    assert vision_cuda(DRIVER, built_for="13.0", version="1.31.1", failure=None) is None


def test_an_onnx_runtime_without_cuda() -> None:
    missing = vision_cuda(DRIVER, built_for="", version="1.31.1", failure=None)
    assert missing is not None
    assert missing.cause == "this ONNX Runtime was built without CUDA"
    assert "pip uninstall -y onnxruntime && " in (missing.remedy or "")
    no_driver = vision_cuda(None, built_for="", version="1.31.1", failure=None)
    assert no_driver == Missing(
        "no NVIDIA driver is installed", "install NVIDIA's current driver and restart the machine"
    )


@pytest.mark.parametrize(
    ("message", "library"),
    [
        ("libcudart.so.12: cannot open shared object file", "libcudart.so.12"),
        ("Failed to load shared library '/x/libllama.so': libcuda.so.1: cannot open", "libcuda.so.1"),
        ("Could not find module 'C:\\x\\cublas64_12.dll'", "cublas64_12.dll"),
        ("/x/libllama.so: undefined symbol: f", None),
    ],
)
def test_which_library_of_a_gpu_is_missing(message: str, library: str | None) -> None:
    assert missing_gpu_library(message) == (None if library is None else f"{library} cannot be loaded")
