"""What EleutherAI's lm-eval says of an exported decoder, on conversations of one's own, offline.

    pip install lm-eval
    python -m benchmarks.lm_eval_task --export DIR --data FILE [--rows 200]

The first rows of the test split of `messages`, of one question and one of few answers each. lm-eval
takes the answer, among all that occur, whose text is the likeliest; so does this project, by its
own tokens of each answer and without lm-eval. Prints both accuracies and how many rows agree.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

import alrq_core
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import conversation_tokens


def main() -> None:
    """Score the rows both ways and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    given = parser.parse_args()
    loaded = alrq_core.load(given.export)
    texts = load_task("sft", given.data).test.texts[: given.rows]
    turns = [[content for _, content in json.loads(text)["messages"]] for text in texts]
    asked = [question for question, _ in turns]
    choices = sorted({answer for _, answer in turns})
    right = [choices.index(answer) for _, answer in turns]
    theirs = by_lm_eval(loaded, asked, choices, right)
    ours = [likeliest(loaded, question, choices) for question in asked]
    hits = sum(found == wanted for found, wanted in zip(ours, right, strict=True))
    agreed = sum((o == r) == t for o, r, t in zip(ours, right, theirs, strict=True))
    print(f"lm-eval: {sum(theirs)} of {len(right)} right; here: {hits}; {agreed} alike")


def by_lm_eval(loaded: Any, asked: list[str], choices: list[str], right: list[int]) -> list[bool]:
    """Return whether lm-eval finds each row right."""
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        docs = [json.dumps({"text": t, "label": n}) for t, n in zip(asked, right, strict=True)]
        rows.write_text("\n".join(docs) + "\n", encoding="utf-8")
        task = {
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": choices,
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
        }
        found = lm_eval.simple_evaluate(model=model, tasks=[task], apply_chat_template=True)
    samples = sorted(found["samples"]["own"], key=lambda sample: sample["doc_id"])
    return [bool(sample["acc"]) for sample in samples]


def likeliest(loaded: Any, question: str, choices: list[str]) -> int:
    """Return the number of the answer that is likeliest, with the token that ends it."""
    scores = []
    for choice in choices:
        turns = [("user", question), ("assistant", choice)]
        ids, counted, _ = conversation_tokens({"messages": turns}, loaded.tokenizer)
        with torch.inference_mode():
            tokens = torch.tensor([ids], device=loaded.model.device)
            logits = loaded.model(input_ids=tokens).logits[0].float().log_softmax(-1)
        places = [place for place, answer in enumerate(counted) if answer]
        scores.append(sum(float(logits[place - 1, ids[place]]) for place in places))
    return max(range(len(choices)), key=scores.__getitem__)


if __name__ == "__main__":
    main()
