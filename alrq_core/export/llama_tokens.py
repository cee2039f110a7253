"""A tokenizer as llama.cpp reads it: tokens, merges, and how text is cut before they apply.

llama.cpp cuts text by code of its own, which a name in the file selects (`llama-vocab.cpp`). The
names here were tried in it with tokenizers that cut so; others are refused, since a file with a
wrong one loads and reads text otherwise than the model was trained on.
"""

import json
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

# llama.cpp composes no letters: of a text that isn't composed yet, Qwen2's tokens differ there.
NORMALIZERS = (None, "NFC")
OTHERWISE = "Use another --quant-backend, and export as transformers or without --as."
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What cuts text, in order, and whether words that are tokens are taken whole, to llama.cpp's name.
CUTS = {
    (("ByteLevel", True), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    (((_WORDS + r"\p{N}{1,3}" + _REST), ("ByteLevel", False)), True): "llama-bpe",
    (((_WORDS + r"\p{N}" + _REST), ("ByteLevel", False)), False): "qwen2",
}


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Add a tokenizer to a file that is about to be written.

    Args:
        writer: Of the file.
        tokenizer: Of the model.
        rows: Embeddings of the model: more than tokens, where they were rounded up.

    Raises:
        ValueError: See `checked_tokenizer`.
    """
    name, model = checked_tokenizer(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    tokens, types = _tokens(tokenizer, model, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    begins, ends = _around(tokenizer)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(ends)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        named = [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(named)
    elif template is not None:
        writer.add_chat_template(template)


def checked_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, Any]]:
    """Return llama.cpp's name of the way that text is cut, and the BPE model.

    Raises:
        ValueError: It is no byte-level BPE that llama.cpp is known to read alike.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = {} if backend is None else json.loads(backend.to_str())
    model = whole.get("model") or {}
    kind = (_cuts(whole.get("pre_tokenizer")), bool(model.get("ignore_merges")))
    normalizer = (whole.get("normalizer") or {}).get("type")
    if model.get("type") != "BPE" or kind not in CUTS or normalizer not in NORMALIZERS:
        raise ValueError(
            "`--model` must have a tokenizer that llama.cpp is known to read alike for gguf "
            f"(byte-level BPE as {', '.join(CUTS.values())} cut text), got a {model.get('type')} "
            f"model that cuts by {whole.get('pre_tokenizer')} after {normalizer}. {OTHERWISE}"
        )
    _around(tokenizer)
    return CUTS[kind], model


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Return whether BOS is put before a text and EOS after it, which is all llama.cpp can do."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begins, ends = whole[0] != bare[0], whole[-1] != bare[-1]
    wanted = [tokenizer.bos_token_id] * begins + bare + [tokenizer.eos_token_id] * ends
    if whole != wanted:
        raise ValueError(
            "`--model` must have a tokenizer that puts BOS, EOS or nothing around a text for gguf, "
            f"got {tokenizer.convert_ids_to_tokens(whole)} for 'a'. {OTHERWISE}"
        )
    return begins, ends


def _cuts(found: dict[str, Any] | None) -> Any:
    """Return a pre-tokenizer as `CUTS` names it; what it doesn't know as something that differs."""
    if found is None:
        return None
    kind = found["type"]
    if kind == "Sequence":
        return tuple(_cuts(part) for part in found["pretokenizers"])
    if kind == "ByteLevel":
        return None if found["add_prefix_space"] else (kind, found["use_regex"])
    if kind == "Digits":
        return kind, found["individual_digits"]
    if kind == "Split" and found["behavior"] == "Isolated" and not found["invert"]:
        return found["pattern"].get("Regex")
    return None


def _tokens(
    tokenizer: PreTrainedTokenizerBase, model: dict[str, Any], rows: int
) -> tuple[list[str], list[int]]:
    """Return the text and the type of each embedding's token."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, int(TokenType.NORMAL)
    for number, added in tokenizer.added_tokens_decoder.items():
        if number >= rows:
            # It has no embedding, and is in no text that was accepted.
            continue
        tokens[number] = added.content
        types[number] = int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    return tokens, types
