"""Whole-slide images: reading their tiles, cutting crops from them, and batches of crops."""
