"""The task: its texts, checked and split, and their tokens in batches."""
