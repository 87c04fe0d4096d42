"""The demo dataset: generated sections with known tissue and expression."""
