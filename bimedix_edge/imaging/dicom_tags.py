"""The DICOM attributes that may leave this package: an allow-list without names, dates and free text."""

from __future__ import annotations

import re
from typing import Any

from bimedix_edge.imaging.notes import Note, note

__all__ = ["allowed_tags", "frame_value", "privacy_warnings"]

# the standard's terms for body parts and views are capitals; text with commas, carets or small letters was typed by
# a person and may be a name
_CODE = re.compile(r"[A-Z0-9][A-Z0-9 _-]{0,15}")
_SIDES = {"L": "left", "R": "right", "B": "both sides"}  # U, unpaired, says nothing
# enhanced multi-frame files keep here what others keep at the root; PS3.3 C.7.6.16
_FRAME_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameAnatomySequence",
    "FramePixelDataPropertiesSequence",
)


def frame_value(dataset: Any, index: int, keyword: str) -> Any:
    """Return an attribute of one frame, or None if absent.

    It is looked for in the frame's functional groups, then in the shared ones, then at the root.

    Args:
        dataset: A pydicom dataset.
        index: The frame, from 0.
        keyword: The attribute's, such as `WindowCenter`.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [per_frame[index]] if index < len(per_frame) else []
    groups += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    for group in groups:
        for macro in _FRAME_MACROS:
            items = group.get(macro) or []
            if len(items) and items[0].get(keyword) is not None:
                return items[0].get(keyword)
    return dataset.get(keyword)


def allowed_tags(dataset: Any, index: int = 0) -> dict[str, str]:
    """Return modality, body part, view and laterality, if stated and if they look like the standard's codes."""
    found = {
        "modality": _code(dataset.get("Modality")),
        "body_part": _code(dataset.get("BodyPartExamined")),
        "view": _code(dataset.get("ViewPosition")),
    }
    side = frame_value(dataset, index, "FrameLaterality") or dataset.get("ImageLaterality") or dataset.get("Laterality")
    found["laterality"] = _SIDES.get(str(side or "").strip().upper(), "")
    return {name: value for name, value in found.items() if value}


def privacy_warnings(dataset: Any) -> list[Note]:
    """Return warnings if the header says that the pixels may identify the patient."""
    warnings = []
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        warnings.append(note("burned_in_text"))
    if str(dataset.get("RecognizableVisualFeatures", "")).strip().upper() == "YES":
        warnings.append(note("recognisable_patient"))
    return warnings


def _code(value: Any) -> str:
    text = str(value or "").strip()
    return text if _CODE.fullmatch(text) else ""
