"""`/metrics` in Prometheus' text format: llama.cpp's server's names where it has them, `bimedix:` for what is ours."""

from __future__ import annotations

from collections import Counter

from bimedix_edge.server.link.messages import State, Stats

__all__ = ["Requests", "metrics_text"]

_STATES: tuple[State, ...] = ("loading", "ready", "restarting", "failed")


class Requests:
    """Counts what was answered, by route and status; a path that is none of ours is not kept."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()

    def count(self, route: str, status: int) -> None:
        """Count one answer."""
        self.answered[route, status] += 1


def metrics_text(stats: Stats, state: State, requests: Requests) -> str:
    """Return all metrics.

    Args:
        stats: of the model's process.
        state: whether it can answer.
        requests: what HTTP answered.
    """
    n_read, n_written = stats.n_prompt_tokens, stats.n_generated_tokens
    table: list[tuple[str, str, str, float]] = [
        ("llamacpp:prompt_tokens_total", "counter", "Prompt positions evaluated.", n_read),
        ("llamacpp:prompt_seconds_total", "counter", "Spent evaluating prompts.", stats.prefill_s),
        ("llamacpp:tokens_predicted_total", "counter", "Tokens written.", n_written),
        ("llamacpp:tokens_predicted_seconds_total", "counter", "Spent writing tokens.", stats.decode_s),
        ("llamacpp:prompt_tokens_seconds", "gauge", "Prompt positions a second.", _rate(n_read, stats.prefill_s)),
        ("llamacpp:predicted_tokens_seconds", "gauge", "Tokens a second.", _rate(n_written, stats.decode_s)),
        ("llamacpp:kv_cache_usage_ratio", "gauge", "Used part of the KV cache.", _rate(stats.kv_used, stats.kv_cells)),
        ("llamacpp:kv_cache_tokens", "gauge", "Positions in the KV cache.", stats.kv_used),
        ("llamacpp:requests_processing", "gauge", "Requests being worked on.", stats.n_active),
        ("llamacpp:requests_deferred", "gauge", "Requests that wait.", stats.n_queued),
        ("bimedix:slots", "gauge", "Requests worked on at once, at most.", stats.n_slots),
        ("bimedix:reused_tokens_total", "counter", "Prompt positions found in the cache.", stats.n_reused_tokens),
        ("bimedix:images_encoded_total", "counter", "Images encoded.", stats.n_encodes),
        ("bimedix:image_seconds_total", "counter", "Spent encoding images.", stats.encode_s),
        ("bimedix:model_restarts_total", "counter", "Starts of the model's process after its death.", stats.n_restarts),
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
