"""hist-predict: expression for slides that have none."""
