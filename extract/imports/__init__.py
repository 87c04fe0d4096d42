"""Measured slides of other programs, brought into the layout of HEST-1k: hist-import."""
