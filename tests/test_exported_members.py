"""The public surface is pinned and sorted, and every name exists and is documented."""

from __future__ import annotations

import inspect

import bimedix_edge
from bimedix_edge import errors

SURFACE = [
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


def test_the_surface_is_pinned() -> None:
    assert bimedix_edge.__all__ == SURFACE == sorted(SURFACE)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in SURFACE:
        value = getattr(bimedix_edge, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_public_methods_are_documented() -> None:
    for kind in (bimedix_edge.Runtime, bimedix_edge.Chat, bimedix_edge.Picture, bimedix_edge.Cancel):
        for name, value in inspect.getmembers(kind):
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{kind.__name__}.{name}"


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(bimedix_edge, "nonsense")


def test_every_error_has_its_documented_exit_code() -> None:
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes == {
        "BimedixEdgeError": 1,
        "UsageError": 2,
        "InputError": 3,
        "ImageError": 3,
        "PromptError": 3,
        "SchemaError": 3,
        "ModelError": 4,
        "BundleError": 4,
        "CheckpointError": 4,
        "DecoderError": 4,
        "VisionError": 4,
        "HardwareError": 5,
        "DeviceError": 5,
        "LostError": 5,
        "NetworkError": 6,
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    assert drawn == set(errors.__all__) - {"BimedixEdgeError"}
