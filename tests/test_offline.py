"""An answer about an image opens no connection: `ask` under strace, in a network namespace of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = re.compile(r"\b(socket|connect|sendto|sendmsg|sendmmsg|bind|getpeername)\(.*\bAF_INET6?\b")
# a local socket reaches a name server even from within a network namespace
LOCAL = re.compile(r"\bconnect\(.*(nscd|resolve|dbus)")


def trace_command(log: Path) -> list[str]:
    """Return the words that run a command traced and without a network; skip where the system lacks them."""
    if sys.platform != "linux":
        pytest.skip("strace and network namespaces are Linux's")
    strace, unshare = shutil.which("strace"), shutil.which("unshare")
    if strace is None or unshare is None:
        pytest.skip("strace or unshare is not installed")
    # an ordinary user gets a network namespace inside a user namespace, if the system allows it
    apart = [unshare, "-n"] if os.geteuid() == 0 else [unshare, "-r", "-n"]
    command = [*apart, strace, "-f", "-qq", "-e", "trace=%network", "-o", str(log)]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the system allows no network namespace, or no tracing")
    return command


def test_the_trace_would_show_a_connection(tmp_path: Path) -> None:
    log = tmp_path / "trace"
    code = "import socket; s = socket.socket(); s.settimeout(1); print(s.connect_ex(('192.0.2.1', 443)))"
    result = subprocess.run(
        [*trace_command(log), sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) != 0  # there is no network
    assert CALLS.search(log.read_text())


def test_an_answer_about_an_image_opens_no_connection(bundles: dict[str, Path], samples: Path, tmp_path: Path) -> None:
    log = tmp_path / "trace"
    words = ["-m", "bimedix_edge.cli.main", "ask", "-m", str(bundles["F16"]), "--image-cache", "64M"]
    question = ["-i", str(samples / "normal.png"), "Is there a nodule?"]
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    result = subprocess.run(
        [*trace_command(log), sys.executable, *words, *question],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"BIMEDIX_EDGE_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert result.stdout.startswith("No.")
    calls = log.read_text().splitlines()
    assert [line for line in calls if CALLS.search(line) or LOCAL.search(line)] == []


def test_decoding_a_dicom_file_opens_no_socket(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    log = tmp_path / "trace"
    words = [
        "-m",
        "bimedix_edge.cli.main",
        "image",
        str(get_testdata_file("CT_small.dcm")),
        "-o",
        str(tmp_path / "x.png"),
    ]
    subprocess.run([*trace_command(log), sys.executable, *words], capture_output=True, check=True)
    assert (tmp_path / "x.png").is_file()
    assert [line for line in log.read_text().splitlines() if CALLS.search(line) or LOCAL.search(line)] == []
