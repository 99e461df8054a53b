"""Which tokens may come next, so that an answer stays within a grammar: the only file that imports llguidance.

llguidance (MIT) compiles a JSON schema for the vocabulary itself: it knows the bytes of every token, so that numbers,
lengths and characters cut into several tokens come out right, and it spends a bounded amount of work on each token.
llama.cpp's own grammars have two faults: their engine ends the process on an unexpected token, and it takes repetitions
above 2000 as endless. The binding's converter of schemas also ignores keywords that it does not know (minimum,
uniqueItems, keywords beside $ref).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.errors import DecoderError, SchemaError

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
except (ImportError, OSError) as error:
    raise DecoderError(
        f"llguidance, which holds answers to a JSON schema, does not load ({error}). "
        "Run `pip install 'llguidance>=1.9,<2'`."
    ) from error

__all__ = ["Constraint", "ConstraintTokens"]

# Schemas come from untrusted clients. Under these limits, the worst of tests/schema/hostile.py took 80 ms to compile
# and 50 ms a token; llguidance's own limits are several times wider. Its longer error texts would repeat the schema.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=50_000,
    verbose_errors=False,
)
_MAX_REASON_CHARACTERS = 160


class ConstraintTokens:
    """A model's tokens, prepared for constraints. Preparing 128,256 tokens takes about a second, so it is made once.

    Args:
        pieces: Bytes of each token, by id.
        special: Ids of tokens that stand for no text.
        end_token: Token that ends an answer.
        tokenize: Tokenizes text that a schema forces, as it would be in a prompt.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Sequence[int],
        end_token: int,
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self._n_vocab = len(pieces)
        self._end_token = end_token
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(pieces, special, end_token, tokenize)))

    def constraint(self, grammar: str) -> Constraint:
        """Return the constraint of one answer.

        Raises:
            SchemaError: The grammar allows nothing, or takes more work than the limits allow.
        """
        return Constraint(self._tokenizer, grammar, self._n_vocab, self._end_token)


class Constraint:
    """The state of one answer under a grammar; made by `ConstraintTokens.constraint`."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, n_vocab: int, end_token: int) -> None:
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(grammar), log_level=0, limits=_LIMITS)
        self._mask = np.zeros((n_vocab + 31) // 32, dtype=np.uint32)
        self._n_vocab = n_vocab
        self._end_token = end_token
        # a schema without any value shows at the first token
        self._allowed: NDArray[np.int32] | None = self._next()

    def allowed(self) -> NDArray[np.int32]:
        """Return the ids that may come next, int32 (n,) ascending, n at least 1.

        Raises:
            SchemaError: The grammar became too much work.
        """
        if self._allowed is None:
            self._allowed = self._next()
        return self._allowed

    def accept(self, token: int) -> None:
        """Go on after one of the allowed tokens."""
        self._allowed = None
        if token != self._end_token and not self._matcher.consume_token(token):
            raise self._failure()

    def _next(self) -> NDArray[np.int32]:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise self._failure()
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._n_vocab, bitorder="little")
        allowed = np.flatnonzero(bits).astype(np.int32)
        if not len(allowed):
            raise SchemaError("No value satisfies the schema. Correct the schema.")
        return allowed

    def _failure(self) -> SchemaError:
        reason = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
        return SchemaError(
            f"No value satisfies the schema, or it takes too much work ({reason[:_MAX_REASON_CHARACTERS]}). "
            "Correct or simplify the schema."
        )


class _Tokens:
    """The interface that llguidance requires of a tokenizer."""

    bos_token_id = None

    def __init__(
        self, pieces: Sequence[bytes], special: Sequence[int], end_token: int, tokenize: Callable[[str], list[int]]
    ) -> None:
        self.tokens = list(pieces)
        self.special_token_ids = list(special)
        self.eos_token_id = end_token
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[int]:
        return self._tokenize(text)
