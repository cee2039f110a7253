"""Who proposes allocations: samplers, the model of the loss, the exact budget. Knows no study."""
