"""Studies: proposals, schedulers, trials and results. The only part that imports Ray."""
