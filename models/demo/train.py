"""Trains the demo model from nothing and writes `checkpoint/`.

    python -m models.demo.train --out models/demo/checkpoint

Three stages: the tokenizer; the tower alone, on labels; then projector and decoder on conversations, with the tower
frozen. Everything is drawn from one seed; streams keep training and held-out pictures apart.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel

from . import dialogues, scoring
from .dialogues import CHANCE, ON_SIDE_KINDS
from .export import round_to_bfloat16, write_checkpoint
from .model import N_IMAGE_TOKENS, VISION, LabelHeads, Llava, build_tower, image_features
from .phantom import SIDES, ZONES, Findings
from .pictures import Pool, draw_pool, normalize
from .sequences import Batch, Encoder, batches
from .vocabulary import train_tokenizer

# Streams of the one seed.
TOWER, DECODER, HELD_OUT, TALK, TOKENIZER, HELD_OUT_TALK, DRILLS = range(7)


def main() -> None:
    """Parse the command line, run the stages, and print the held-out scores."""
    parser = argparse.ArgumentParser(description="Train the demo model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--tower-steps", type=int, default=600, help="steps of 64 pictures")
    parser.add_argument("--decoder-steps", type=int, default=800, help="steps of 32 conversations")
    parser.add_argument("--side-steps", type=int, default=350, help="then of 48, mostly single questions about sides")
    parser.add_argument("--review-steps", type=int, default=170, help="then of 48, mostly single closed questions")
    parser.add_argument("--tower-pictures", type=int, default=10000)
    parser.add_argument("--decoder-pictures", type=int, default=6000)
    parser.add_argument("--held-out-pictures", type=int, default=500)
    parser.add_argument(
        "--weight-noise", type=float, default=0.08, help="of a matrix's rms, in the second half, against 4-bit rounding"
    )
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in training (slower on most CPUs)")
    args = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(args.seed)

    tokenizer = train_tokenizer(np.random.default_rng((args.seed, TOKENIZER)))
    pool = draw_pool(args.tower_pictures, (args.seed, TOWER), rough=True)
    held_out = draw_pool(args.held_out_pictures, (args.seed, HELD_OUT), rough=False)
    say(started, f"{len(pool.findings)} pictures drawn")
    tower = train_tower(pool, held_out, args, started)

    pool = draw_pool(args.decoder_pictures, (args.seed, DECODER), rough=True)
    features = tower_features(tower, pool)
    say(started, f"{len(pool.findings)} more pictures drawn and encoded")
    torch.manual_seed(args.seed)  # so that this stage does not depend on the number of steps of the tower
    llava = Llava(tokenizer.get_vocab_size())
    encoder = Encoder(tokenizer, N_IMAGE_TOKENS)
    gallery = Gallery(pool, features)
    rng = np.random.default_rng((args.seed, TALK))
    stream = batches(encoder, dialogues.conversations(rng), 32, rng)
    train_decoder(llava, gallery.examples(stream, rng), Schedule(args.decoder_steps, 1.5e-3), args, started)
    for steps, kinds, share in ((args.side_steps, ON_SIDE_KINDS, 0.75), (args.review_steps, tuple(CHANCE), 0.6)):
        rng = np.random.default_rng((args.seed, DRILLS, steps))
        stream = batches(encoder, dialogues.drills_and_conversations(rng, kinds, share), 48, rng)
        train_decoder(llava, gallery.examples(stream, rng), Schedule(steps, 8e-4), args, started)

    round_to_bfloat16(llava)
    size = write_checkpoint(args.out, tower, llava, tokenizer)
    say(started, f"{size} bytes in {args.out}")
    report(tower, llava, tokenizer, held_out, args.seed)
    say(started, "done")


def say(started: float, text: str) -> None:
    """Print one line of progress with the minutes since the start."""
    print(f"{(time.perf_counter() - started) / 60:6.1f} min  {text}", flush=True)


# The tower ----------------------------------------------------------------------------------------------------


def labels(findings: list[Findings]) -> Tensor:
    """Return labels, int64 (n, 3): nodule 0 or 1 to 6 by side and zone, effusion 0 or 1 to 2 by side, heart 0 or 1."""
    rows = []
    for f in findings:
        nodule = 0 if f.nodule is None else 1 + 3 * SIDES.index(f.nodule[0]) + ZONES.index(f.nodule[1])
        rows.append((nodule, 0 if f.effusion is None else 1 + SIDES.index(f.effusion), int(f.enlarged_heart)))
    return torch.tensor(rows)


def train_tower(pool: Pool, held_out: Pool, args: argparse.Namespace, started: float) -> CLIPVisionModel:
    """Train a tower whose feature layer encodes the findings; return it rounded to bfloat16 and frozen."""
    tower = build_tower()
    heads = LabelHeads(tower.config.hidden_size)
    modules = nn.ModuleList([tower, heads])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    wanted = labels(pool.findings)
    rng = np.random.default_rng((args.seed, TOWER))
    for step in range(args.tower_steps):
        rows = rng.integers(len(pool.findings), size=64)
        pixels, shift = jitter(normalize(pool.pixels[rows]), rng)
        set_rate(optimizer, 1e-3, step, args.tower_steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
            by_patch, by_cls, place = label_logits(tower, heads, torch.from_numpy(pixels))
        loss = functional.cross_entropy(place, places(pool.centres[rows] + shift))
        for index in range(3):
            loss += functional.cross_entropy(by_patch[index], wanted[rows, index])
            loss += 0.3 * functional.cross_entropy(by_cls[index], wanted[rows, index])
        update(optimizer, modules, loss)
        if step % 50 == 49:
            say(started, f"tower step {step + 1}: loss {loss.item():.3f}")
    round_to_bfloat16(tower)
    tower.requires_grad_(False)
    with torch.inference_mode():
        logits, _, _ = label_logits(tower, heads, torch.from_numpy(normalize(held_out.pixels)))
    right = torch.stack([part.argmax(1) for part in logits], 1) == labels(held_out.findings)
    say(started, f"tower, held-out labels right: {[round(x, 4) for x in right.float().mean(0).tolist()]}")
    return tower


def places(centres: np.ndarray) -> Tensor:
    """Return the patch of each centre, int64 (n,); centres are float32 (n, 2) in px, and NaN gives 64."""
    patch = np.clip(np.nan_to_num(centres) // VISION["patch_size"], 0, 7).astype(np.int64)
    return torch.from_numpy(np.where(np.isnan(centres[:, 0]), N_IMAGE_TOKENS, patch[:, 0] * 8 + patch[:, 1]))


def label_logits(
    tower: CLIPVisionModel, heads: LabelHeads, pixels: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return logits: labels from the feature layer's patches, labels from the last layer's CLS, the nodule's place."""
    output = tower(pixels, output_hidden_states=True)
    return heads(output.hidden_states[-2][:, 1:], output.pooler_output)


def jitter(pixel_values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Change contrast, brightness and grain of float32 (n, 3, h, w), and shift it by up to 4 px; the labels stay true.

    Returns:
        The changed pixel_values, and the shift in px as int64 (2,), rows and columns.
    """
    shape = (len(pixel_values), 1, 1, 1)
    changed = pixel_values * rng.uniform(0.85, 1.15, shape) + rng.normal(0.0, 0.15, shape)
    changed += rng.uniform(0.0, 0.08, shape) * rng.standard_normal(pixel_values.shape, dtype=np.float32)
    shift = rng.integers(-4, 5, size=2)
    return np.roll(changed, shift, axis=(2, 3)).astype(np.float32), shift


@torch.inference_mode()
def tower_features(tower: CLIPVisionModel, pool: Pool) -> Tensor:
    """Return the feature layer of every picture, float16 (n, 64, 192)."""
    parts = [image_features(tower, torch.from_numpy(normalize(p))).half() for p in np.array_split(pool.pixels, 64)]
    return torch.cat(parts)


# Projector and decoder ------------------------------------------------------------------------------------------


Example = tuple[Batch, Tensor]


class Gallery:
    """Finds a random picture for given findings."""

    def __init__(self, pool: Pool, features: Tensor) -> None:
        self.features = features
        self.places: dict[Findings, list[int]] = defaultdict(list)
        for index, findings in enumerate(pool.findings):
            self.places[findings].append(index)

    def look_up(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Return the features of a random picture for each one in the batch, float32 (m, 64, 192)."""
        chosen = [self.places[f][int(rng.integers(len(self.places[f])))] for f in batch.pictures]
        return self.features[chosen].float()

    def examples(self, stream: Iterator[Batch], rng: np.random.Generator) -> Iterator[Example]:
        """Yield each batch with the features of its pictures."""
        return ((batch, self.look_up(batch, rng)) for batch in stream)


@dataclass(frozen=True)
class Schedule:
    """The length of a stage of training, in steps, and its highest learning rate."""

    steps: int
    peak: float


def train_decoder(
    llava: Llava, examples: Iterator[Example], schedule: Schedule, args: argparse.Namespace, started: float
) -> None:
    """Train projector and decoder on conversations; the loss is on the answers only."""
    steps = schedule.steps
    optimizer = torch.optim.AdamW(llava.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(steps):
        batch, features = next(examples)
        ids, keep, targets = scoring.shifted(batch)
        set_rate(optimizer, schedule.peak, step, steps)
        noise = args.weight_noise if step >= steps // 2 else 0.0
        with rounding_noise(llava.decoder, noise):
            with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
                logits = llava(ids, features, keep).float()
            loss = functional.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(llava.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 24:
            right = float((logits.argmax(1) == targets).float().mean())
            say(started, f"decoder step {step + 1}: loss {loss.item():.4f}, tokens right {right:.4f}")


@contextmanager
def rounding_noise(module: nn.Module, scale: float) -> Iterator[None]:
    """Add normal noise of scale x rms to every matrix inside the block, so that the answers survive a quantizer."""
    matrices = [weight for weight in module.parameters() if weight.dim() == 2]
    with torch.no_grad():
        clean = [weight.clone() for weight in matrices]
        for weight in matrices:
            weight.add_(torch.randn_like(weight) * (scale * weight.square().mean().sqrt()))
    yield
    with torch.no_grad():
        for weight, kept in zip(matrices, clean, strict=True):
            weight.copy_(kept)


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int, warmup: int = 50) -> None:
    """Set the learning rate: linear warm-up, then a cosine down to 1 % of the peak."""
    done = min(1.0, step / max(1, steps))
    rate = peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def update(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
    """Take one step down the clipped gradient."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


# Scores ---------------------------------------------------------------------------------------------------------


def blind_features(tower: CLIPVisionModel, pixels: np.ndarray) -> Tensor:
    """Return the features, float32 (1, 64, 192), of a picture, uint8 (3, 112, 112), that shows nothing."""
    with torch.inference_mode():
        return image_features(tower, torch.from_numpy(normalize(pixels[None])))


def report(tower: CLIPVisionModel, llava: Llava, tokenizer: Tokenizer, held_out: Pool, seed: int) -> None:
    """Print the accuracy on held-out pictures and wordings, also with a grey and a noise picture in their place."""
    encoder = Encoder(tokenizer, N_IMAGE_TOKENS)
    features = tower_features(tower, held_out).float()
    noise = np.random.default_rng(seed).integers(0, 256, size=(3, 112, 112), dtype=np.uint8)
    blind = {"grey": blind_features(tower, np.full_like(noise, 128)), "noise": blind_features(tower, noise)}
    for language in dialogues.LANGUAGES:
        exam = scoring.Exam(llava, encoder, held_out, language)
        seen = scoring.closed_accuracy(exam, lambda i: features[i : i + 1], seed)
        print(f"{language}: closed {seen[0]:.4f}, smallest lead {seen[2]:.2f} logits, by kind {seen[1]}")
        for name, feature in blind.items():
            score, kinds, _ = scoring.closed_accuracy(exam, lambda i, f=feature: f, seed)
            print(f"{language}: closed with {name} pictures {score:.4f}, by kind {kinds}")
        opened = scoring.open_accuracy(exam, lambda i: features[i : i + 1])
        print(f"{language}: open, exact {opened:.4f}")
    gallery, rng = Gallery(held_out, features), np.random.default_rng((seed, HELD_OUT_TALK))
    turns = scoring.conversation_accuracy(llava, encoder, rng, lambda b: gallery.look_up(b, rng))
    print(f"turns of held-out conversations, exact {turns:.4f}", flush=True)


if __name__ == "__main__":
    main()
