from dataclasses import dataclass


@dataclass(frozen=True)
class PixelSize:
    um_per_px: float
    source: str


def read_pixel_size(name, path):
    from hist_cache.metadata import read_metadata, read_scale

    root = path.resolve().parent.parent
    if not (root / "metadata" / f"{path.stem}.json").exists():
        return None
    return PixelSize(read_scale(name, *read_metadata(root, name)).um_per_px, "HEST metadata")
