"""Models: HiST, baselines, and the base that all share."""
