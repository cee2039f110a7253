"""Trained allocations as folders: exactly as they are, or for other engines."""
