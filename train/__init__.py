"""Phase two: train HiST on the cache."""
