"""Choosing tokens from logits, by llama.cpp's samplers and under a grammar's constraint."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.llama import llama_cpp
from bimedix_edge.errors import DecoderError
from bimedix_edge.sampling import Sampling

if TYPE_CHECKING:
    from bimedix_edge.decoder.constraint import Constraint

__all__ = ["Sampler", "logits_of"]

_PENALTY_WINDOW_TOKENS = 64
# llama_token_data of llama.h
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A chain of llama.cpp's samplers with the state of one answer; made by `Decoder.sampler`.

    Args:
        sampling: How tokens are chosen.
        n_vocab: Number of tokens in the vocabulary.
        constraint: Which tokens may come next; None allows all of them.
    """

    def __init__(self, sampling: Sampling, n_vocab: int, constraint: Constraint | None = None) -> None:
        self._n_vocab = n_vocab
        self._constraint = constraint
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if not chain:
            raise DecoderError("llama.cpp could not create a sampler. Restart the program.")
        self._chain = chain
        for sampler in _samplers(sampling, n_vocab):
            llama_cpp.llama_sampler_chain_add(chain, sampler)

    def accept(self, tokens: Iterable[int]) -> None:
        """Show tokens of the prompt to the repeat penalty."""
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, context: llama_cpp.llama_context_p, index: int = -1) -> int:
        """Choose a token from the logits of one position of the last evaluation.

        Args:
            context: Context of the evaluation.
            index: Index of the position in its batch; -1 is the last one with logits.

        Raises:
            SchemaError: The grammar became too much work.
        """
        if self._constraint is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context, index))
        logits = logits_of(context, index, self._n_vocab)
        token = self._choose(self._constraint.allowed(), logits)
        self._constraint.accept(token)
        return token

    def _choose(self, allowed: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        """Let the chain choose among the allowed tokens alone, so it needs no grammar sampler."""
        candidates = np.zeros(len(allowed), dtype=_CANDIDATE)
        candidates["id"] = allowed
        candidates["logit"] = logits[allowed]
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)),
            size=len(allowed),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the chain; calling it again does nothing."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None


def logits_of(context: llama_cpp.llama_context_p, index: int, n_vocab: int) -> NDArray[np.float32]:
    """Return the logits of a position of the last batch, float32 (n_vocab,), valid until the next evaluation."""
    pointer = llama_cpp.llama_get_logits_ith(context, index)
    logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(n_vocab,))
    return logits


def _samplers(sampling: Sampling, n_vocab: int) -> list[llama_cpp.llama_sampler_p]:
    chain = []
    if sampling.repeat_penalty != 1.0:
        penalties = (_PENALTY_WINDOW_TOKENS, sampling.repeat_penalty, 0.0, 0.0)
        chain.append(llama_cpp.llama_sampler_init_penalties(n_vocab, *penalties))
    if sampling.temperature == 0.0:
        return [*chain, llama_cpp.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        chain.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        chain.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    chain.append(llama_cpp.llama_sampler_init_temp(sampling.temperature))
    chain.append(llama_cpp.llama_sampler_init_dist(sampling.seed))
    return chain
