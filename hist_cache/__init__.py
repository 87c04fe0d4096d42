"""What both phases share: slides on disk, spots and niches, panels, splits, the HDF5 cache."""
