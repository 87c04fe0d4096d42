"""Extraction, the first phase: run the encoder once over all crops and store what it gives."""
