"""What may be chosen: target modules, allocations, spaces and their byte costs."""
