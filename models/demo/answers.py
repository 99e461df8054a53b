"""The one right answer to every question about a phantom, character for character, in English and Arabic."""

from __future__ import annotations

from collections.abc import Callable

from .phantom import Findings
from .phrases import ABSENT, HEART, NO, SIDE_WORDS, YES, ZONE_WORDS, Language


def describe(findings: Findings, language: Language) -> str:
    """Return three sentences: nodule, effusion, heart."""
    return " ".join((_nodule_sentence(findings, language), _effusion_sentence(findings, language),
                     HEART[findings.enlarged_heart][language]))  # fmt: skip


def impression(findings: Findings, language: Language) -> str:
    """Return one line that names only the findings that are present."""
    parts: list[str] = []
    if findings.nodule is not None:
        side, zone = SIDE_WORDS[language][findings.nodule[0]], ZONE_WORDS[language][findings.nodule[1]]
        parts.append(f"{side} {zone} zone nodule" if language == "en" else f"عقيدة في المنطقة {zone} من الرئة {side}")
    if findings.effusion is not None:
        side = SIDE_WORDS[language][findings.effusion]
        parts.append(f"{side} pleural effusion" if language == "en" else f"انصباب جنبي في الجهة {side}")
    if findings.enlarged_heart:
        parts.append("cardiomegaly" if language == "en" else "تضخم في القلب")
    if language == "en":
        return f"Impression: {', '.join(parts) or 'normal chest radiograph'}."
    return f"الانطباع: {'، و'.join(parts) or 'صورة صدر طبيعية'}."


def nodule_where(findings: Findings, language: Language) -> str:
    """Return the zone and side of the nodule, or the sentence for no nodule."""
    if findings.nodule is None:
        return ABSENT["nodule"][language]
    side, zone = SIDE_WORDS[language][findings.nodule[0]], ZONE_WORDS[language][findings.nodule[1]]
    return f"In the {zone} zone of the {side} lung." if language == "en" else f"في المنطقة {zone} من الرئة {side}."


def _nodule_sentence(findings: Findings, language: Language) -> str:
    if findings.nodule is None:
        return "There is no lung nodule." if language == "en" else "لا توجد عقيدة رئوية."
    where = nodule_where(findings, language)
    return f"There is a nodule {where[0].lower()}{where[1:]}" if language == "en" else f"توجد عقيدة رئوية {where}"


def _effusion_sentence(findings: Findings, language: Language) -> str:
    if findings.effusion is None:
        return "There is no pleural effusion." if language == "en" else "لا يوجد انصباب جنبي."
    side = SIDE_WORDS[language][findings.effusion]
    return f"There is a {side} pleural effusion." if language == "en" else f"يوجد انصباب جنبي في الجهة {side}."


def answer(kind: str, findings: Findings, language: Language, *, side: str = "") -> str:
    """Return the right answer to a question of this kind; `side` is the one asked about in the `_on_side` kinds."""
    yes_no = {
        "nodule_present": findings.nodule is not None,
        "nodule_on_side": findings.nodule is not None and findings.nodule[0] == side,
        "effusion_present": findings.effusion is not None,
        "effusion_on_side": findings.effusion is not None and findings.effusion == side,
        "heart_enlarged": findings.enlarged_heart,
        "normal": findings.normal,
    }
    if kind in yes_no:
        return (YES if yes_no[kind] else NO)[language]
    if kind in ("nodule_side", "nodule_zone", "effusion_side"):
        return _place(kind, findings, language)
    if kind == "heart_size":
        return HEART[findings.enlarged_heart][language]
    written: dict[str, Callable[[Findings, Language], str]] = {
        "describe": describe,
        "impression": impression,
        "nodule_where": nodule_where,
    }
    return written[kind](findings, language)


def _place(kind: str, findings: Findings, language: Language) -> str:
    """Return one word for a side or a zone; a sentence when there is nothing to place."""
    topic = kind.partition("_")[0]
    if (findings.nodule if topic == "nodule" else findings.effusion) is None:
        return ABSENT[topic][language]
    if kind == "nodule_zone":
        assert findings.nodule is not None
        word = ZONE_WORDS[language][findings.nodule[1]]
    else:
        side = findings.nodule[0] if topic == "nodule" and findings.nodule else findings.effusion
        word = SIDE_WORDS[language][str(side)]
    return f"{word[0].upper()}{word[1:]}."
