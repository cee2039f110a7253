"""Searches bits and ranks with Ray Tune, Trainer, PEFT and bitsandbytes alone: alrq's plain peer.

This is what following the libraries' documentation gives: one function as the trainable, Optuna's
TPE on the validation loss, ASHA, and layers that are replaced by hand before PEFT sees them. Space,
recipe, sentences and rungs are those of `run_search.py --space joint`, but for the embedding, which
stays as it is, and the first step, whose learning rate is 0 in transformers' schedule. 16 bits are
float32 layers whose weights were rounded to bfloat16. Ray starts without its dashboard, which is
kinder than its default.

    python benchmarks/naive.py --trials 20 --out naive.json

One thing no documentation tells: on processors with AVX512-BF16, bitsandbytes repacks the codes of
NF4 layers at the first evaluation, and training cannot go on after it. Each of them is told not to
(`quantised`), as whoever met that crash would do.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import ray
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from datasets import Dataset
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from peft import LoraConfig, PeftModel, get_peft_model
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from alrq_core.data.splits import TextSplit
from alrq_core.data.tasks import load_task
from alrq_core.models.finding import resolve_model

BITS, RANKS, BLOCKS = (2, 3, 4, 8, 16), (0, 2, 4, 8, 16, 32), 6
LAYERS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
MODULES = [f"bert.encoder.layer.{block}.{layer}" for block in range(BLOCKS) for layer in LAYERS]
ALPHA_OVER_RANK, GROUP_SIZE, MAX_LENGTH = 2, 64, 128
REPORTED = ("step", "sentences", "eval_loss", "eval_accuracy", "eval_runtime")


def main() -> None:
    """Run the search, write what it measured, and print the best trials."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=2, help="trials at a time, a core each")
    parser.add_argument("--grace-period", type=int, help="ASHA's, in steps; else a quarter of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=Path, help="JSON list of parameters to evaluate first")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(address="local", num_cpus=flags.parallel, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        results = search(flags, folder)
        fit_seconds = time.time() - started
        process_start = psutil.Process().create_time()
        trials = [
            describe(result, process_start)
            for result in map(results.__getitem__, range(len(results)))
        ]
    ray.shutdown()
    document = {
        "flags": vars(flags),
        "wall_seconds": round(time.time() - process_start, 2),
        "fit_seconds": round(fit_seconds, 2),
        "trials": trials,
    }
    flags.out.write_text(json.dumps(document, indent=1, default=str) + "\n")
    summarise(document, flags.max_steps)


def search(flags: argparse.Namespace, folder: str) -> tune.ResultGrid:
    """Return the results of all trials."""
    space: dict[str, Any] = {"max_steps": flags.max_steps, "seed": flags.seed}
    for name in MODULES:
        space[f"{name}.bits"] = tune.choice(BITS)
        space[f"{name}.rank"] = tune.choice(RANKS)
    points = json.loads(flags.points.read_text()) if flags.points else None
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="eval_loss",
            mode="min",
            num_samples=flags.trials,
            max_concurrent_trials=flags.parallel,
            search_alg=OptunaSearch(points_to_evaluate=points, seed=flags.seed),
            scheduler=ASHAScheduler(
                time_attr="step",
                max_t=flags.max_steps,
                grace_period=flags.grace_period or max(1, flags.max_steps // 4),
                reduction_factor=2,
            ),
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    return tuner.fit()


def train(config: dict[str, Any]) -> None:
    """Train one trial, and report at a quarter, a half and all of its steps."""
    started, steps = time.time(), config["max_steps"]
    set_seed(config["seed"])
    task = load_task("rotten_tomatoes")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("minilm"))
    validation = tokenised(tokenizer, task.validation)
    trainer = Trainer(
        model=build_model(config),
        args=training_arguments(steps, config["seed"]),
        train_dataset=tokenised(tokenizer, task.train),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores,
    )

    def report(rows: Dataset, **more: float) -> None:
        metrics = trainer.evaluate(rows)
        tune.report(
            {
                "step": trainer.state.global_step,
                "sentences": len(rows),
                "eval_loss": metrics["eval_mean_loss"],
                "eval_accuracy": metrics["eval_accuracy"],
                "eval_runtime": metrics["eval_runtime"],
                "trial_started": started,
                "reported": time.time(),
                **more,
            }
        )

    half = validation.select(range(0, len(validation), 2))
    trainer.add_callback(AtSteps({steps // 4, steps // 2}, lambda: report(half)))
    result = trainer.train()
    report(validation, train_runtime=result.metrics["train_runtime"])


class AtSteps(TrainerCallback):
    """Calls a function after some of the optimiser steps."""

    def __init__(self, steps: set[int], call: Callable[[], None]) -> None:
        self.steps = steps
        self.call = call

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Call it if this is one of the steps."""
        if state.global_step in self.steps:
            self.call()


def training_arguments(steps: int, seed: int) -> TrainingArguments:
    """Return the recipe."""
    return TrainingArguments(
        output_dir="trainer",
        max_steps=steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1: a part of all steps
        train_sampling_strategy="group_by_length",  # of evaluation too
        label_names=["labels"],
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def tokenised(tokenizer: Any, split: TextSplit) -> Dataset:
    """Return a split in tokens; batches are padded when they are made."""
    rows = Dataset.from_dict({"text": split.texts, "labels": split.labels})
    return rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        remove_columns="text",
    )


def scores(prediction: EvalPrediction) -> dict[str, float]:
    """Return accuracy and mean loss over all sentences.

    In the Trainer's own mean the last, smaller batch counts as much as a full one.
    """
    logits, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
    return {
        "accuracy": float((logits.argmax(-1) == labels).float().mean()),
        "mean_loss": float(nn.functional.cross_entropy(logits.float(), labels)),
    }


def build_model(config: dict[str, Any]) -> PeftModel:
    """Return MiniLM with the trial's bits and ranks, and a new head."""
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model("minilm"),
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        dtype=torch.float32,
    )
    for name in MODULES:
        layer = quantised(model.get_submodule(name), config[f"{name}.bits"])
        model.set_submodule(name, layer)
    # Without both marks PEFT takes layers of bitsandbytes for plain ones.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = True
    ranks = {name: config[f"{name}.rank"] for name in MODULES if config[f"{name}.rank"]}
    exact = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
    lora = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=list(ranks),
        rank_pattern=exact,
        alpha_pattern={key: ALPHA_OVER_RANK * rank for key, rank in exact.items()},
        modules_to_save=["classifier"],
    )
    return get_peft_model(model, lora)


def quantised(layer: nn.Linear, bits: int) -> nn.Module:
    """Return the layer in these bits."""
    if bits == 16:
        layer.weight.data = layer.weight.data.to(torch.bfloat16).float()
        return layer
    if bits < 4:
        packing = BaseQuantizeConfig(nbits=bits, group_size=GROUP_SIZE, axis=1)
        return HQQLinear(layer, packing, compute_dtype=torch.float32, device="cpu")
    shape, bias = (layer.in_features, layer.out_features), layer.bias is not None
    if bits == 8:
        # On a CPU these quantise activations too, but in evaluation only.
        packed = Linear8bitLt(*shape, bias, has_fp16_weights=False)
    else:
        packed = Linear4bit(*shape, bias, compute_dtype=torch.float32, quant_type="nf4")
        # Otherwise the first evaluation rewrites the codes for a kernel that has no backward pass.
        packed.support_avx512bf16_for_cpu = False
    packed.load_state_dict(layer.state_dict())
    # Moving to a device is what quantises, even from CPU to CPU.
    return packed.to("cpu")


def describe(result: tune.Result, process_start: float) -> dict[str, Any]:
    """Return one trial as it is written.

    Seconds since the program began say when its function was called and when each report was made.
    `train_runtime` has all training and the evaluations before the last one.
    """
    table, config = result.metrics_dataframe, result.config or {}
    rows = [] if table is None or "step" not in table else table.to_dict("records")
    reports = [
        {key: row[key] for key in REPORTED}
        | {"at_seconds": round(row["reported"] - process_start, 2)}
        for row in rows
    ]
    return {
        "parameters": {key: config[key] for key in config if key not in ("max_steps", "seed")},
        "started_seconds": round(rows[0]["trial_started"] - process_start, 2) if rows else None,
        "steps": reports[-1]["step"] if reports else 0,
        "reports": reports,
        "train_runtime": (result.metrics or {}).get("train_runtime"),
        "error": None if result.error is None else str(result.error),
    }


def summarise(document: dict[str, Any], max_steps: int) -> None:
    """Print the times and the trials that were trained to the end, the best one first."""
    trials = document["trials"]
    whole = [trial for trial in trials if trial["steps"] == max_steps]
    print(
        f"{len(trials)} trials, {len(whole)} with all steps, "
        f"{sum(trial['error'] is not None for trial in trials)} failed; "
        f"{document['fit_seconds']} s of tuning, {document['wall_seconds']} s in all"
    )
    for trial in sorted(whole, key=lambda trial: trial["reports"][-1]["eval_loss"])[:5]:
        last, values = trial["reports"][-1], trial["parameters"]
        print(
            f"loss {last['eval_loss']:.4f}, accuracy {100 * last['eval_accuracy']:.1f} %, "
            f"bits {np.mean([values[f'{name}.bits'] for name in MODULES]):.2f} and "
            f"rank {np.mean([values[f'{name}.rank'] for name in MODULES]):.2f} on average"
        )


if __name__ == "__main__":
    main()
