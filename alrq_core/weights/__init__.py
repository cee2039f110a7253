"""The frozen weights: codes of every format, the layers that compute with them, and their cache."""
