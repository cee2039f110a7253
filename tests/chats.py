"""Conversations of a toy tokenizer, with and without a chat template."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

WORDS = [
    "say",
    "what",
    "is",
    "the",
    "film",
    "good",
    "bad",
    "plot",
    "of",
    "a",
    "story",
    "and",
    "why",
    "not",
    "yes",
    "no",
    "maybe",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No end of a prompt that keeps its tokens apart from those of the answer.
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} </s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def tokenizer(template: str | None, bos: bool) -> PreTrainedTokenizerFast:
    """Bytes in pairs, learnt from words with what stands around them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    texts = [f"Answer: {word} {word}\n{word}. [INST] {word} [/INST] {word} " for word in WORDS]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    found.chat_template = template
    return found


def save(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def model(folder: Path, template: str | None = CHATML) -> Path:
    tokenizer(template, bos=True).save_pretrained(folder)
    LlamaConfig(vocab_size=600).save_pretrained(folder)
    return folder
