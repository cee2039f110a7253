"""The hardware: what it offers, what a trial will need of it, and the batch that fits."""
