"""A run's images as a dataset: which of them, with what beside them, whole or absent."""
