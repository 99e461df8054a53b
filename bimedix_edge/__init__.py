"""Runs BiMediX2, a bilingual (Arabic-English) medical vision-language model, offline on the hardware at hand.

    from bimedix_edge import Runtime, Token

    with Runtime.open("demo") as runtime, runtime.chat() as chat:
        for event in chat.ask("Is there a nodule?", images=["chest.png"]):
            if isinstance(event, Token):
                print(event.text, end="")

A research model, not for clinical use; BiMediX2's weights are licensed CC BY-NC-SA 4.0.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bimedix_edge.chat import Chat, Turn
    from bimedix_edge.errors import (
        BimedixEdgeError,
        BundleError,
        CheckpointError,
        DecoderError,
        HardwareError,
        ImageError,
        InputError,
        ModelError,
        NetworkError,
        PromptError,
        SchemaError,
        UsageError,
        VisionError,
    )
    from bimedix_edge.events import Cancel, Done, Encode, Event, ImageUse, Prefill, Timings, Token, Usage
    from bimedix_edge.imaging.notes import Note
    from bimedix_edge.imaging.picture import Picture, load_picture
    from bimedix_edge.runtime import Runtime
    from bimedix_edge.sampling import Sampling
    from bimedix_edge.schema.grammar import grammar_for
    from bimedix_edge.schema.reports import load_schema
    from bimedix_edge.settings import Settings, load_settings

__all__ = [
    "BimedixEdgeError",
    "BundleError",
    "Cancel",
    "Chat",
    "CheckpointError",
    "DecoderError",
    "Done",
    "Encode",
    "Event",
    "HardwareError",
    "ImageError",
    "ImageUse",
    "InputError",
    "ModelError",
    "NetworkError",
    "Note",
    "Picture",
    "Prefill",
    "PromptError",
    "Runtime",
    "Sampling",
    "SchemaError",
    "Settings",
    "Timings",
    "Token",
    "Turn",
    "Usage",
    "UsageError",
    "VisionError",
    "grammar_for",
    "load_picture",
    "load_schema",
    "load_settings",
]

# names are imported at their first use, so that `doctor` runs even where an engine does not load
_MODULES = {
    "Cancel": "events",
    "Chat": "chat",
    "Done": "events",
    "Encode": "events",
    "Event": "events",
    "ImageUse": "events",
    "Note": "imaging.notes",
    "Picture": "imaging.picture",
    "Prefill": "events",
    "Runtime": "runtime",
    "Sampling": "sampling",
    "Settings": "settings",
    "Timings": "events",
    "Token": "events",
    "Turn": "chat",
    "Usage": "events",
    "grammar_for": "schema.grammar",
    "load_picture": "imaging.picture",
    "load_schema": "schema.reports",
    "load_settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
