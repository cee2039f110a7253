"""What a person reads of a study: its plan, its progress, its evidence and its files."""
