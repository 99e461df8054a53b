"""Makes the reference arrays from the demo checkpoint with torch and transformers: run it when the checkpoint changes.

.venv/bin/python tests/golden/make_golden.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bimedix_edge.store import demo_checkpoint  # noqa: E402
from golden.prompts import prompts  # noqa: E402  the path above comes first
from golden.reference import Reference  # noqa: E402

N_LOGITS = 20
N_PICTURES = 4


def main() -> None:
    """Write answers.json, logits.npz and vision.npz beside this file."""
    reference = Reference(demo_checkpoint())
    answers, logits = [], []
    for prompt in prompts():
        ids, first = reference.answer(prompt)
        answers.append({"kind": prompt.kind, "ids": ids, "text": reference.tokenizer.decode(ids)})
        logits.append(first)
    lines = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers)
    (HERE / "answers.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    np.savez_compressed(HERE / "logits.npz", logits=np.stack(logits[:: len(logits) // N_LOGITS]))
    pictures = [picture for prompt in prompts() for picture in prompt.pictures][:N_PICTURES]
    pixel_values = np.concatenate([reference.pixel_values(picture) for picture in pictures])
    embeds = np.stack([reference.embeds(values[None]) for values in pixel_values])
    np.savez_compressed(HERE / "vision.npz", pixel_values=pixel_values, embeds=embeds)
    right = sum(bool(answer["ids"]) for answer in answers)
    print(f"{len(answers)} answers ({right} not empty), {len(logits[::5])} rows of logits, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
