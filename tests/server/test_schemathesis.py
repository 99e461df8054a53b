"""The server does what its OpenAPI document says: schemathesis sends 2,000 requests and more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from server_process import PATIENCE_S, Server

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance",
    "ignored_auth",
)  # fmt: skip
N_CASES = 2000
N_FUZZED = 150  # for each operation, besides those of the coverage phase


def test_two_thousand_requests_made_from_the_document(start_server: Callable[..., Server], tmp_path: Path) -> None:
    # short answers, since the test is about requests
    server = start_server("--ctx-size", "128", "--max-tokens", "2")
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json",
        "--header", f"Authorization: Bearer {server.key}", "--phases", "coverage,fuzzing",
        "--max-examples", str(N_FUZZED), "--checks", ",".join(CHECKS), "--continue-on-failure", "--no-shrink",
        "--seed", "7", "--workers", "2", "--request-timeout", str(PATIENCE_S), "--suppress-health-check", "all",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-8000:]
    generated = re.search(r"([\d,]+) generated", result.stdout)
    assert generated is not None, result.stdout
    assert int(generated[1].replace(",", "")) >= N_CASES
    # a server that only refuses would pass so far
    text = server.request("GET", "/metrics").body.decode()
    answered = re.findall(r'route="(/v1/\w.*|/tokenize|/detokenize)",status="200"\} (\d+)', text)
    assert {route for route, count in answered if int(count) > 0} >= {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize"
    }  # fmt: skip
    assert not re.search(r'status="5(?!03)\d\d"', text)
