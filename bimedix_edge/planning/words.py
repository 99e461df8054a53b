"""The warnings of a plan, and their sentences in English and Arabic."""

from __future__ import annotations

from typing import ClassVar

from bimedix_edge.imaging.notes import Note
from bimedix_edge.imaging.words import Sentences

__all__ = ["SENTENCES", "PlanWarning"]

SENTENCES: Sentences = {
    "en": {
        "memory_short": "{need_gb:.1f} GB of memory are needed and {free_gb:.1f} GB are free now: the system may swap "
        "other programs out, or read weights from the disk again and again",
        "long_context": "the context of {ctx_size} tokens is longer than the {trained} that the model was trained with",
    },
    "ar": {
        "memory_short": "يلزم {need_gb:.1f} غيغابايت من الذاكرة والمتاح الآن {free_gb:.1f} غيغابايت: قد ينقل النظام "
        "برامج أخرى إلى القرص، أو يقرأ الأوزان منه مرارًا",
        "long_context": "طول السياق {ctx_size} رمزًا، وهو أطول من {trained} رمزًا دُرّب عليها النموذج",
    },
}


class PlanWarning(Note, frozen=True):
    """Something to know about a plan before the model runs by it."""

    sentences: ClassVar[Sentences] = SENTENCES
