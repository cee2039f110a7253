"""The report of a study: one file that a browser shows without a network."""
