"""hist-export: a run as one folder that predicts on another machine, without any training data in it."""
