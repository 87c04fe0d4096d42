"""Folds: from options to settings and jobs, and running them."""
