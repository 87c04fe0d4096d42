"""Hyperparameter studies over phase two."""
