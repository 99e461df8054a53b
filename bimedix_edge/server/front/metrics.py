"""`/metrics` in Prometheus' text format: names of llama.cpp's server where it has them, else with `bimedix:`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

__all__ = ["RequestCounts", "State", "Stats", "metrics_text"]

State = Literal["loading", "ready", "restarting", "failed"]
_STATES: tuple[State, ...] = ("loading", "ready", "restarting", "failed")


@dataclass(frozen=True)
class Stats:
    """Counters since the server started, and gauges.

    Attributes:
        n_queued: Requests that wait.
        n_active: Requests that the child works on.
        n_slots: Most requests that the child works on at once.
        n_prompt_tokens, n_reused_tokens, n_generated_tokens: Positions prefilled, found in the KV cache, and decoded.
        n_encodes: Images encoded.
        n_restarts: Times that the model's process was started again.
        kv_used, kv_cells: Cells of the KV cache in use, and all of them.
        encode_s, prefill_s, decode_s: Seconds spent in these phases.
    """

    n_queued: int = 0
    n_active: int = 0
    n_slots: int = 0
    n_prompt_tokens: int = 0
    n_reused_tokens: int = 0
    n_generated_tokens: int = 0
    n_encodes: int = 0
    n_restarts: int = 0
    kv_used: int = 0
    kv_cells: int = 0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class RequestCounts:
    """Counts answers by route and status; unknown paths share one entry."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()

    def count(self, route: str, status: int) -> None:
        """Count one answer."""
        self.answered[route, status] += 1


def metrics_text(stats: Stats, state: State, requests: RequestCounts) -> str:
    """Return all metrics.

    Args:
        stats: Counters and gauges of the model's process.
        state: Whether it can answer.
        requests: Counts of HTTP answers.
    """
    n_read, n_written = stats.n_prompt_tokens, stats.n_generated_tokens
    table: list[tuple[str, str, str, float]] = [
        ("llamacpp:prompt_tokens_total", "counter", "Prompt positions prefilled.", n_read),
        ("llamacpp:prompt_seconds_total", "counter", "Seconds spent in prefill.", stats.prefill_s),
        ("llamacpp:tokens_predicted_total", "counter", "Tokens decoded.", n_written),
        ("llamacpp:tokens_predicted_seconds_total", "counter", "Seconds spent in decode.", stats.decode_s),
        (
            "llamacpp:prompt_tokens_seconds",
            "gauge",
            "Positions prefilled a second.",
            _rate(n_read, stats.prefill_s),
        ),
        ("llamacpp:predicted_tokens_seconds", "gauge", "Tokens decoded a second.", _rate(n_written, stats.decode_s)),
        ("llamacpp:kv_cache_usage_ratio", "gauge", "Used share of the KV cache.", _rate(stats.kv_used, stats.kv_cells)),
        ("llamacpp:kv_cache_tokens", "gauge", "Used cells of the KV cache.", stats.kv_used),
        ("llamacpp:requests_processing", "gauge", "Requests in flight.", stats.n_active),
        ("llamacpp:requests_deferred", "gauge", "Requests that wait.", stats.n_queued),
        ("bimedix:slots", "gauge", "Most requests in flight at once.", stats.n_slots),
        ("bimedix:reused_tokens_total", "counter", "Prompt positions found in the KV cache.", stats.n_reused_tokens),
        ("bimedix:images_encoded_total", "counter", "Images encoded.", stats.n_encodes),
        ("bimedix:image_seconds_total", "counter", "Seconds spent encoding images.", stats.encode_s),
        ("bimedix:model_restarts_total", "counter", "Restarts of the model's process.", stats.n_restarts),
    ]
    lines = []
    for name, kind, text, value in table:
        lines += [*_head(name, kind, text), f"{name} {value}"]
    lines += _head("bimedix:model_state", "gauge", "1 for the state the model's process is in.")
    lines += [f'bimedix:model_state{{state="{name}"}} {int(name == state)}' for name in _STATES]
    lines += _head("bimedix:http_requests_total", "counter", "Answers by route and status.")
    lines += [
        f'bimedix:http_requests_total{{route="{route}",status="{status}"}} {count}'
        for (route, status), count in sorted(requests.answered.items())
    ]
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _rate(count: float, of: float) -> float:
    return count / of if of else 0.0
