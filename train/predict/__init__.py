"""hist-predict: predicted expression of slides, and the files that show it."""
