"""Leaves out what an encoder's last block computes and no classifier reads."""

from typing import Any

from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from alrq_core.models.attention import attend
from alrq_core.models.structure import override_forward

# Their heads read the first token alone (`BertPooler`, `RobertaClassificationHead`), and their
# blocks have one layout.
FIRST_TOKEN_CLASSIFIERS = (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)


def keep_first_token(model: nn.Module) -> None:
    """Make the last block of a classifier compute its first token only, where that is all it needs.

    Keys and values still come from all tokens, so that logits and gradients stay the same. Of the
    last block's matrix products a sixth is left: MiniLM-L6 saves 14 % of all. Other models, and
    attention of another kind than torch's own, are left as they are.
    """
    if not isinstance(model, FIRST_TOKEN_CLASSIFIERS):
        return
    classifier: Any = model
    if classifier.config._attn_implementation != "sdpa" or classifier.config.is_decoder:
        return
    block = classifier.base_model.encoder.layer[-1]
    override_forward(block, _first_token_of_block)


def _first_token_of_block(
    block: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """Return the block's output at the first token, batch x 1 x width."""
    attention, first = block.attention.self, hidden_states[:, :1]

    def heads(x: Tensor) -> Tensor:
        split = x.view(*x.shape[:-1], -1, attention.attention_head_size)
        return split.transpose(1, 2)

    context = attend(
        heads(attention.query(first)),
        heads(attention.key(hidden_states)),
        heads(attention.value(hidden_states)),
        None if attention_mask is None else attention_mask[:, :, :1],
        dropout_p=attention.dropout.p if attention.training else 0.0,
        scale=attention.scaling,
    )
    attended = block.attention.output(context.transpose(1, 2).flatten(2), first)
    output: Tensor = block.feed_forward_chunk(attended)
    return output
