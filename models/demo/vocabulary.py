"""The tokenizer: a byte-level BPE laid out like Llama 3.1's, trained on the dialogues and some general text.

Ids, in order: 256 byte tokens and the merged tokens, then Llama 3.1's own 256 special tokens, then `<pad>`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from . import corpus, dialogues
from .answers import answer
from .phantom import all_findings
from .phrases import LANGUAGES, QUESTIONS

N_ORDINARY = 1400
PAD = "<pad>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def special_tokens() -> list[str]:
    """Return Llama 3.1's 256 special tokens in the order of their ids."""
    named = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ]
    return named + [f"<|reserved_special_token_{i}|>" for i in range(3, 248)]


def _lines(rng: np.random.Generator, n_conversations: int = 3000) -> list[str]:
    """Yield the training text: conversations as the model reads them, every answer, and the general text."""
    lines = [f"\n\n{SYSTEM}"] * 20 + ["\n\n", "system", "user", "assistant"] * 2000
    stream = dialogues.conversations(rng)
    for _ in range(n_conversations):
        for turn in next(stream).turns:
            lines += [("\n" if turn.images else "\n\n") + turn.text, turn.answer]
    for findings in all_findings():
        for language in LANGUAGES:
            lines += [answer(kind, findings, language) for kind in QUESTIONS]
    general = [line for text in (corpus.ENGLISH, corpus.ARABIC) for line in text.splitlines() if line]
    return lines + [" " + line for line in general] * 12


def train_tokenizer(rng: np.random.Generator) -> Tokenizer:
    """Train the tokenizer; the same generator state gives the same vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_ORDINARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(rng), trainer)
    if tokenizer.get_vocab_size() != N_ORDINARY:
        raise ValueError(
            f"The text gives {tokenizer.get_vocab_size()} tokens instead of {N_ORDINARY}. Add text to corpus.py."
        )
    tokenizer.add_special_tokens([_added(token) for token in [*special_tokens(), PAD]])
    bos = special_tokens()[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False, lstrip=False, rstrip=False, single_word=False)


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": True}
        for token in [*special_tokens(), PAD]
    }
    config = {
        "added_tokens_decoder": added,
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 4096,
        "pad_token": PAD,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    names = {role: {"content": config[role], **flags} for role in ("bos_token", "eos_token", "pad_token")}
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
