"""How an answer's tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divisor of the logits; 0 is greedy; the authors use 0.1.
        top_p: Keep the smallest set of tokens with this probability; 1 keeps all.
        top_k: Keep this many tokens; 0 keeps all.
        min_p: Drop tokens below this fraction of the best one's probability; 0 drops none.
        repeat_penalty: Divides the logits of the last 64 tokens; 1 is none.
        seed: Seed of the random choice.
        grammar: Grammar of the answer, made by `grammar.grammar_for`; None allows any text.
    """

    temperature: float = 0.1
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    grammar: str | None = field(default=None, repr=False)
