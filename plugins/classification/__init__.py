"""Classifiers trained on real and generated images: what the utility metrics share."""
