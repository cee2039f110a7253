"""Checks that a tokenizer is the model's own: it has a vocabulary and knows the texts."""

from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase


def vocabulary_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the embeddings that a vocabulary needs.

    Tokens that were added to it don't count: Gemma 3 has one for pictures and no embedding for it.
    """
    own = tokenizer.get_vocab().items() - tokenizer.get_added_vocab().items()
    return max((number for _, number in own), default=-1) + 1


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Check that a tokenizer knows more than its special tokens.

    Without its files, transformers makes an empty one of the model's type, and says nothing.

    Raises:
        ValueError: It knows nothing else.
    """
    own = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    if not own - set(tokenizer.all_special_tokens):
        files = [file for file in tokenizer.vocab_files_names.values() if (folder / file).is_file()]
        raise ValueError(
            f"`--model` must come with its tokenizer, got {str(folder)!r} with "
            f"{' and '.join(files) or 'none of its files'} and a vocabulary of "
            f"{len(tokenizer)} special tokens. Save it there with `tokenizer.save_pretrained`."
        )


def check_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, lengths: np.ndarray, rows: int, split: str
) -> None:
    """Check that a model can read what a tokenizer made of a split's texts.

    Args:
        tokenizer: Of the model.
        ids: Tokens of all sequences.
        lengths: Tokens of each sequence.
        rows: Embeddings of the model.
        split: Name of the split, for messages.

    Raises:
        ValueError: A text has no token, a token has no embedding, or most are unknown.
    """
    if not lengths.all():
        raise ValueError(
            f"`--data` must have a token in every text, got none in {int((lengths == 0).sum())} "
            f"of {len(lengths)} texts of the {split} split, the first in row "
            f"{int(lengths.argmin()) + 1}. Remove texts of blanks and invisible signs."
        )
    largest = int(ids.max())
    if largest >= rows:
        raise ValueError(
            f"`--model` must come with a tokenizer that fits, got token {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}) in the {split} split for {rows} "
            "embeddings. Restore the model's own tokenizer files."
        )
    known = int(np.isin(ids, tokenizer.all_special_ids, invert=True).sum())
    unknown = int((ids == tokenizer.unk_token_id).sum()) if tokenizer.unk_token else 0
    if known <= unknown:
        raise ValueError(
            f"`--model` must come with a tokenizer that knows the texts, got {unknown:,} unknown "
            f"tokens beside {known:,} known ones in the {split} split. Restore the model's own "
            "tokenizer files, or use a model for these texts."
        )
