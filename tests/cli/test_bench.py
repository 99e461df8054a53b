"""`bimedix-edge bench` as a user runs it; no test compares a measured speed with a number."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from native_build import NATIVE, compile_native, with_ggml
from PIL import Image

from bimedix_edge.bench.benchmark import Benchmark, Measurement
from bimedix_edge.bench.workloads import Workload
from bimedix_edge.bundle import read_manifest
from bimedix_edge.cli.bench_chart import draw_chart
from bimedix_edge.cli.bench_report import About
from bimedix_edge.cli.commands.bench import bench
from bimedix_edge.decoder.kernels import Kernels
from bimedix_edge.decoder.placement import Placement
from bimedix_edge.errors import HardwareError
from bimedix_edge.hardware.machine import inspect_machine

COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main", "bench"]
NAMES = [
    *(f"prefill {n} tokens" for n in (64, 512, 640)),
    "decode 1 sequence",
    *(f"decode {n} sequences" for n in (2, 4, 8)),
]
IMAGE_NAMES = ["image encode", "first token, new image", "first token, follow-up"]


def run(*arguments: str | Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(folder / "cache"))
        chart = folder / "chart.png"
        result = run("--shape", "demo", "--type", "q8_0", "--rounds", "2", "--json", "--plot", chart)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    yield json.loads(result.stdout), folder / "cache", chart


def _kernels_work(report: dict[str, Any]) -> bool:
    return report["kernels"]["on"] is not None


def _check_measurements(report: dict[str, Any], names: list[str]) -> None:
    assert [found["name"] for found in report["measurements"]] == names
    for found in report["measurements"]:
        assert set(found) == {"name", "kind", "tokens", "ceiling", "off", "on", "ratio"}
        for side in ("off", "on"):
            taken = found[side]
            assert set(taken) == {"rounds_ms", "median_ms", "tokens_per_s", "share_of_ceiling"}
            if side == "on" and not _kernels_work(report):
                assert taken["rounds_ms"] == []
                assert taken["median_ms"] is None
                continue
            assert len(taken["rounds_ms"]) == report["rounds"]
            assert min(taken["rounds_ms"]) <= taken["median_ms"] <= max(taken["rounds_ms"])
            assert min(taken["rounds_ms"]) > 0
            if found["tokens"] is not None:
                assert taken["tokens_per_s"] == pytest.approx(found["tokens"] / taken["median_ms"] * 1e3, rel=1e-2)
        if _kernels_work(report):
            assert found["ratio"] == pytest.approx(found["off"]["median_ms"] / found["on"]["median_ms"], rel=1e-2)


def test_random_weights_are_measured_with_kernels_and_without(random_run: tuple[dict[str, Any], Path, Path]) -> None:
    report, _, _ = random_run
    assert set(report) == {
        *("model", "machine", "threads", "kernels", "rounds", "both_loaded", "load_ms", "ceilings", "measurements"),
        *("placement", "vision_device", "notice"),
    }
    assert (report["placement"]["n_gpu_layers"], report["vision_device"]) == (0, None)
    assert report["ceilings"]["card_gb_per_s"] is None
    assert min(report["load_ms"].values()) > 0
    assert report["rounds"] == 2
    assert report["threads"] == inspect_machine().n_cores
    _check_measurements(report, NAMES)
    assert report["model"]["random"] is True
    assert report["model"]["type"] == "Q8_0"
    assert "weights are random" in report["notice"]


def test_prefill_is_a_share_of_what_the_machine_multiplies(random_run: tuple[dict[str, Any], Path, Path]) -> None:
    report, _, _ = random_run
    if not _kernels_work(report):
        pytest.skip("no kernels for this processor")
    assert report["ceilings"]["read_gb_per_s"] > 0
    assert report["ceilings"]["int8_gops"] > 0
    for found in report["measurements"]:
        assert found["ceiling"] == ("int8" if found["kind"] == "prefill" else None)
        # the demo's weights are so small that they stay in the caches
        assert (found["on"]["share_of_ceiling"] is not None) == (found["kind"] == "prefill")
        if found["kind"] == "prefill":
            assert 0 < found["on"]["share_of_ceiling"] < 1


def test_only_what_is_named_is_measured(cache: Path) -> None:
    result = run(
        "--shape", "demo", "--rounds", "1", "--json", "--only", "prefill 64 ", "--only", "decode 2", "-t", "q8_0"
    )
    assert result.returncode == 0, result.stderr
    _check_measurements(json.loads(result.stdout), ["prefill 64 tokens", "decode 2 sequences"])


def test_a_name_that_no_measurement_has_is_refused(cache: Path) -> None:
    result = run("--shape", "demo", "--rounds", "1", "--only", "decode 2", "--only", "prefil 64", "-t", "q8_0")
    assert result.returncode == 2
    assert "prefill 64 tokens" in result.stderr
    assert "'prefil 64'" in result.stderr
    assert result.stdout == ""


def test_random_weights_are_removed(random_run: tuple[dict[str, Any], Path, Path]) -> None:
    _, cache, _ = random_run
    assert list(cache.iterdir()) == []


def test_the_chart_is_a_png(random_run: tuple[dict[str, Any], Path, Path]) -> None:
    _, _, chart = random_run
    with Image.open(chart) as image:
        assert image.format == "PNG"
        assert image.width == 2000
        assert image.height > 1000
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 20) or []}
    off, on = colours[0x9A, 0xA7, 0xB5], colours.get((0x0B, 0x7A, 0x75), 0)
    # the longest bar of decode has 35,000 pixels; a side has about 1,100 in the legend alone
    assert off + on > 30_000
    assert off > 2_000
    if _kernels_work(random_run[0]):
        assert on > 2_000


def _benchmark(*measurements: Measurement, **fields: Any) -> Benchmark:
    """Return the result of one round on a processor that reads 400 GB/s, without kernels of ours."""
    values: dict[str, Any] = {
        "kernels": Kernels(None, "none"),
        "rounds": 1,
        "n_threads": 1,
        "both_loaded": False,
        "read_bytes_per_s": 400e9,
        "card_bytes_per_s": None,
        "int8_ops_per_s": None,
        "load_s": {},
        "placement": Placement(),
        "vision_device": None,
    }
    return Benchmark(measurements, **values | fields)


DECODE = Workload("decode 1 sequence", "decode", lambda _side: 0.0, 1, "read", 10**9)
ENCODE = Workload("image encode", "encode", lambda _side: 0.0)


def test_the_chart_shows_medians_ceilings_and_ratios() -> None:
    decode = Measurement(DECODE, {"off": [0.02, 0.01, 0.9], "on": [0.005]})
    encode = Measurement(ENCODE, {"off": [2.0], "on": []})
    about = About("a $model$ of $5", None, "Q8_0", 10**9, "The notice.")
    figure = draw_chart(about, _benchmark(decode, encode, kernels=Kernels("avx2", "chosen"), rounds=3))
    of_decode, of_encode = figure.axes
    # tokens per second: the median of `off` is 20 ms; 400 GB/s read 1 GB in 2.5 ms
    assert [bar.get_width() for bar in of_decode.patches] == [pytest.approx(50), pytest.approx(200)]
    (line,) = of_decode.collections
    assert line.get_segments()[0][:, 0] == pytest.approx([400, 400])
    assert [text.get_text() for text in of_decode.texts] == ["50.0 t/s  (12%)", "200.0 t/s  (50%)", "4.00×"]
    # seconds, and one side alone
    assert [bar.get_width() for bar in of_encode.patches] == [2.0]
    assert [text.get_text() for text in of_encode.texts] == ["2.00 s"]
    assert not of_encode.collections
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert labels == ["decode 1 sequence", "image encode"]
    written = [text.get_text() for text in figure.texts]
    assert written[0] == "a $model$ of $5, Q8_0"
    assert written[-2:] == ["Ceilings: memory is read at 400.0 GB/s.", "The notice."]
    (legend,) = figure.legends
    keys = ["off: llama.cpp's own kernels", "on: avx2", "ceiling of this machine (% reached)"]
    assert [text.get_text() for text in legend.get_texts()] == keys


def test_numbers_and_names_of_the_chart_do_not_overlap() -> None:
    # the ceiling's line would cross the number of `off` where the bar ends
    decode = Measurement(DECODE, {"off": [0.0028], "on": [0.0026]})
    encode = Measurement(ENCODE, {"off": [2.0], "on": [1.0]})
    about = About("a model", None, "Q8_0", 10**9, "A notice that is too long for one line. " * 8)
    figure = draw_chart(about, _benchmark(decode, encode))
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())] + figure.texts
    boxes = [text.get_window_extent() for text in texts]
    for index, box in enumerate(boxes):
        assert not [other for other in boxes[:index] if box.overlaps(other)]
        assert box.x0 > 0
        assert box.x1 < figure.bbox.x1
    ceiling_px, _ = figure.axes[0].transData.transform((400, 0))
    assert [box for box in boxes if box.x0 > ceiling_px]
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert not box.x0 < ceiling_px < box.x1


def test_without_matplotlib_a_chart_is_refused_before_anything_is_measured(cache: Path, tmp_path: Path) -> None:
    # an entry of None is a module that cannot be imported
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from bimedix_edge.cli.main import main\n"
        "sys.argv[0] = 'bimedix-edge'\n"
        "main()\n"
    )
    words = ["bench", "--shape", "demo", "--plot", str(tmp_path / "chart.png")]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "bimedix-edge: --plot needs matplotlib, which is not installed. Install it: pip install 'bimedix-edge[plot]'\n"
    )
    assert not (tmp_path / "chart.png").exists()
    assert not cache.exists()


def test_a_model_is_measured_with_images(bundles: dict[str, Path]) -> None:
    result = run("--model", bundles["Q4_K_M"], "--rounds", "1", "--threads", "1", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    _check_measurements(report, [*NAMES, *IMAGE_NAMES])
    assert report["threads"] == 1
    assert report["model"]["random"] is False
    assert report["notice"] == read_manifest(bundles["Q4_K_M"]).notice


def test_tables_fit_80_columns_and_end_with_the_notice(cache: Path) -> None:
    result = run("--model", "demo", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    for name in (*NAMES, *IMAGE_NAMES):
        assert sum(line.startswith(name) for line in lines) == 1
    assert "not for clinical use" in lines[-1]
    assert "demo model" in result.stderr


def test_floating_point_weights_have_no_int8_ceiling(bundles: dict[str, Path]) -> None:
    only = ("--only", "prefill 64 ", "--only", "decode 1 ", "--only", "image encode")
    result = run("--model", bundles["F16"], "--rounds", "1", "--json", *only)
    assert result.returncode == 0, result.stderr
    assert [found["ceiling"] for found in json.loads(result.stdout)["measurements"]] == [None, None, None]


def test_without_memory_for_both_one_is_loaded_after_the_other(
    cache: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from bimedix_edge.bench import benchmark

    machine = replace(inspect_machine(), available_bytes=1_000_000)
    monkeypatch.setattr(benchmark, "inspect_machine", lambda: machine)
    names = ["prefill 64 tokens", "decode 2 sequences", *IMAGE_NAMES]
    words = ["--model", str(bundles["Q8_0"]), "--rounds", "2", "--json"]
    bench.main([*words, *(word for name in names for word in ("--only", name))], standalone_mode=False)
    report = json.loads(capsys.readouterr().out)
    assert report["both_loaded"] is False
    _check_measurements(report, names)


def test_a_model_larger_than_memory_is_refused(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from bimedix_edge.bench import benchmark

    machine = replace(inspect_machine(), memory_bytes=1_000_000)
    monkeypatch.setattr(benchmark, "inspect_machine", lambda: machine)
    with pytest.raises(HardwareError, match=r"needs .* GB of memory, and this machine has 0\.0 GB"):
        bench.main(["--model", str(bundles["Q8_0"])], standalone_mode=False)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it did not happen within a minute")


@pytest.mark.parametrize("when", ["writing", "measuring"])
def test_ctrl_c_removes_the_weights(cache: Path, when: str) -> None:
    shape = "1b" if when == "writing" else "demo"
    arguments = ["--shape", shape, "--type", "Q8_0", "--rounds", "1000"]
    path = cache / "bench" / "decoder.gguf"
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if when == "writing":
            _wait_for(path.exists, process)
        else:
            # the decoder is loaded from then on
            maps = Path(f"/proc/{process.pid}/maps")
            _wait_for(lambda: path.exists() and str(path) in maps.read_text(), process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert output == ""
    # the plan is printed after the weights are written
    lines = [line for line in errors.splitlines() if line]
    assert lines[-1] == "bimedix-edge: interrupted"
    assert len(lines) == (1 if when == "writing" else 2)
    assert list(cache.iterdir()) == []


def test_what_a_killed_benchmark_left_is_removed_by_the_next(cache: Path) -> None:
    left = cache / "bench"
    left.mkdir(parents=True)
    (left / "decoder.gguf").write_bytes(b"left")
    only = ("--only", "prefill 64 ")
    assert run("--shape", "demo", "--type", "q4_k_m", "--rounds", "1", *only).returncode == 0
    assert list(cache.iterdir()) == []


def test_too_little_space_is_found_before_anything_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=4_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HardwareError, match=r"Random weights need 5\.0 GB in .* and 4\.0 GB are free"):
        bench.main(["--shape", "8b"], standalone_mode=False)
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(cache: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = run("--shape", "demo", before=limit)
    assert result.returncode == 5
    assert "Expected room to write" in result.stderr
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Neither --model nor --shape is given"),
        (["--shape", "8b", "--model", "demo"], "--model and --shape exclude each other"),
        (["--shape", "9b"], "There is no shape '9b'. Choose one of demo, 1b, 8b"),
        (["--shape", "70b-slice"], "There is no shape '70b-slice'"),
        (["--shape", "demo", "--type", "Q9"], "There is no type 'Q9'. Choose one of F32, "),
        (["--model", "demo", "--type", "Q8_0"], "--type works only with --shape"),
        (["--model", "nonsense"], "nonsense"),
        (["--shape", "demo", "--kernels", "off"], "--kernels off leaves nothing to compare"),
        (["--shape", "demo", "--kernels", "fast"], "avx512vnni"),
        (["--shape", "demo", "--threads", "-1"], "threads"),
        (["--shape", "demo", "--plot", "chart.jpg"], "does not end in .png"),
        (["--shape", "demo", "--plot", "nowhere/chart.png"], "nowhere/chart.png cannot be written"),
    ],
)
def test_wrong_usage_is_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("bimedix-edge: ")
    assert result.stderr.endswith(".\n")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not cache.exists() or os.listdir(cache) == []


def test_rounds_are_at_least_one() -> None:
    result = run("--shape", "demo", "--rounds", "0")
    assert result.returncode == 2
    assert "--rounds" in result.stderr


@pytest.mark.parametrize(
    ("n_gpu_layers", "card", "ceiling", "share"),
    [(0, None, "read", 0.25), (33, 200e9, "card", 0.5), (16, None, None, None), (33, None, None, None)],
)
def test_the_memory_that_holds_the_weights_is_the_ceiling_of_decode(
    n_gpu_layers: int, card: float | None, ceiling: str | None, share: float | None
) -> None:
    measured = Measurement(DECODE, {"on": [0.01], "off": []})
    found = _benchmark(measured, card_bytes_per_s=card, placement=Placement(n_gpu_layers=n_gpu_layers))
    assert found.ceiling_of(measured) == ceiling
    assert found.share(measured, "on") == (None if share is None else pytest.approx(share))


def test_on_a_gpu_the_report_names_its_layers(tmp_path: Path, bundles: dict[str, Path]) -> None:
    # ggml's CPU backend stands in for a graphics card with memory of its own
    library = compile_native([NATIVE / "stand_in.cpp"], tmp_path / "libstand_in.so", "-shared", "-fPIC", *with_ggml())
    code = (
        "import ctypes, sys\n"
        "from bimedix_edge.decoder import llama\n"
        "llama.backends()\n"
        f"stand_in = ctypes.CDLL({str(library)!r})\n"
        "stand_in.stand_in_devices(1)\n"
        "stand_in.stand_in_memory(0, ctypes.c_size_t(8 << 30), ctypes.c_size_t(0))\n"
        f"llama.ggml('ggml_backend_load', ctypes.c_void_p, ctypes.c_char_p)({str(library).encode()!r})\n"
        "from bimedix_edge.cli.main import main\n"
        "sys.argv[0] = 'bimedix-edge'\n"
        "main()\n"
    )
    words = ["bench", "-m", str(bundles["Q8_0"]), "--rounds", "1", "--only", "decode 1", "--gpu-layers", "3", "--json"]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["placement"]["n_gpu_layers"] == 3
    assert report["placement"]["devices"] == ["StandIn0"]
    assert report["placement"]["split"] == [3]
    assert not report["both_loaded"]
    assert report["vision_device"] == "cpu"
    (found,) = report["measurements"]
    assert found["ceiling"] is None  # layers on both devices
    assert found["off"]["tokens_per_s"] > 0


def test_a_gpu_that_is_missing_is_an_error_before_anything_is_measured(bundles: dict[str, Path]) -> None:
    result = run("-m", bundles["Q8_0"], "--gpu-layers", "all")
    assert (result.returncode, result.stdout) == (5, "")
    assert "Expected a GPU for --gpu-layers all, but " in result.stderr
