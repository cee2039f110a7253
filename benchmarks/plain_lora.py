"""Trains 16-bit LoRA with PEFT and transformers alone, to hold `--space B-FP` against.

Nothing of alrq but its split of the sentences is used: no packed layers, no buckets, PEFT's own
forward, transformers' own schedule and the model's own dropout unless another is asked for.

    python benchmarks/plain_lora.py --seeds 1 2 3
"""

import argparse
import warnings

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_cosine_schedule_with_warmup,
)

from alrq_core.data.splits import TextSplit
from alrq_core.data.tasks import load_task
from alrq_core.models.finding import resolve_model

STEPS, WARMUP, BATCH_SIZE, LEARNING_RATE, MAX_LENGTH, RANK = 200, 20, 32, 1e-3, 128, 8


def main() -> None:
    """Print the test accuracy of each seed, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dropout", type=float, help="of embeddings, layers and attention")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(flags.threads)
    values = []
    for seed in flags.seeds:
        values.append(train(seed, flags.dropout))
        print(f"seed {seed}: test accuracy {100 * values[-1]:.2f} %", flush=True)
    print(f"mean of {len(values)} seeds: {100 * np.mean(values):.2f} %")


def train(seed: int, dropout: float | None) -> float:
    """Return the test accuracy of one run."""
    folder, task = resolve_model("minilm"), load_task("rotten_tomatoes")
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {}
    if dropout is not None:
        options = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **options)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=["pooler.dense"],
        modules_to_save=["classifier"],
    )
    model = get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    order = np.random.default_rng(seed).permutation(np.tile(np.arange(len(task.train.texts)), 2))
    model.train()
    for step in range(STEPS):
        rows = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        inputs = encode(tokenizer, task.train, rows)
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return score(model, tokenizer, task.test)


def encode(tokenizer, split: TextSplit, rows: np.ndarray):
    """Return one padded batch with its labels."""
    texts = [split.texts[row] for row in rows]
    inputs = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    return {**inputs, "labels": torch.tensor([split.labels[row] for row in rows])}


def score(model, tokenizer, split: TextSplit) -> float:
    """Return the accuracy over a split."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(split.texts), BATCH_SIZE):
            rows = np.arange(start, min(start + BATCH_SIZE, len(split.texts)))
            inputs = encode(tokenizer, split, rows)
            right += int((model(**inputs).logits.argmax(-1) == inputs["labels"]).sum())
    return right / len(split.texts)


if __name__ == "__main__":
    main()
