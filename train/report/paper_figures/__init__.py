"""Figures for a paper: exact widths in mm, text that stays text, colours that colour-blind readers tell apart."""
