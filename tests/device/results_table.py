"""The measurements of `baseline.py` as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["render"]

_NOT = "not measured"
_COLUMNS = (
    "weights",
    "layers on the card",
    "answer",
    "of the card's bandwidth",
    "prompt of 512 tokens",
    "image",
    "first token, new image",
    "first token, follow-up",
)


def render(results: Mapping[str, Any]) -> str:
    """Return the card, its measured bandwidth, and a row for each run, in Markdown.

    Args:
        results: Content of WORK/results.json, which `baseline.py` writes.
    """
    rows = [_row(run) for run in results["runs"]]
    head = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    return "\n".join([_about(results), "", *head, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _about(results: Mapping[str, Any]) -> str:
    found = {finding["subject"]: finding for finding in results["doctor"]["findings"]}
    driver = found.get("NVIDIA driver", {}).get("data", {})
    cards = ", ".join(gpu["name"] for gpu in driver.get("gpus", [])) or "no card"
    bandwidths = [run["report"]["ceilings"].get("card_gb_per_s") for run in results["runs"]]
    bandwidth = next((f"{value:.0f} GB/s copied" for value in bandwidths if value), f"bandwidth {_NOT}")
    cpu = found["machine"]["data"]
    rounds = results["runs"][0]["report"]["rounds"] if results["runs"] else 0
    card = f"{cards}, driver {driver.get('version') or 'unknown'}, {bandwidth}; {cpu['cpu']}, {cpu['cores']} cores"
    weights = f"random weights in the {results['shape']}'s shape"
    return f"{card}; {weights}, llama-cpp-python {results['llama_cpp_python']}, medians of {rounds}."


def _row(run: Mapping[str, Any]) -> list[str]:
    measured = {(item["kind"], item["tokens"]): item for item in run["report"]["measurements"]}
    decode, prefill = measured.get(("decode", 1)), measured.get(("prefill", 512))
    layers = run["gpu_layers"] if run["gpu_layers"] in ("all", "0") else f"{run['gpu_layers']} of {run['n_layer']}"
    times = [_time(measured.get((kind, None))) for kind in ("encode", "first_token", "follow_up")]
    return [run["type"].upper(), layers, _rate(decode), _share(decode), _rate(prefill), *times]


def _side(item: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the side with our kernels, or the other side where ours was not measured."""
    if item is None:
        return {}
    side: Mapping[str, Any] = item["on"] if item["on"]["median_ms"] is not None else item["off"]
    return side


def _rate(item: Mapping[str, Any] | None) -> str:
    rate = _side(item).get("tokens_per_s")
    return _NOT if rate is None else f"{rate:,.1f} tokens/s"


def _share(item: Mapping[str, Any] | None) -> str:
    share = _side(item).get("share_of_ceiling")
    return "–" if item is None or item["ceiling"] != "card" or share is None else f"{share:.0%}"


def _time(item: Mapping[str, Any] | None) -> str:
    milliseconds = _side(item).get("median_ms")
    return _NOT if milliseconds is None else f"{milliseconds:.0f} ms"
