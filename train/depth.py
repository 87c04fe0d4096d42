"""How deeply slides were sequenced, and what follows where a split's slides differ in it.

A slide with three times the counts of another one has higher log2 expression in every gene. A model that is trained on
other depths predicts it with an offset, and the MSE on such a slide says more of this offset than of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hist_cache.splits import Split

FAR_DEPTH = 3.0
"""There is a warning of a slide whose depth is so many times larger, or smaller, than that of the train slides."""


def slide_depths(total: np.ndarray, slide_index: np.ndarray, n_slides: int) -> np.ndarray:
    """The median counts of the spots of each slide.

    Args:
        total: Counts of each spot over all genes, `(N,)`.
        slide_index: Number of the slide of each spot, from 0 to `n_slides` - 1, `(N,)`.
        n_slides: How many slides there are.

    Returns:
        Counts a spot, `(n_slides,)` float64; NaN for a slide without spots.
    """
    depths = np.full(n_slides, np.nan)
    for i in np.unique(slide_index):
        depths[i] = np.median(total[slide_index == i])
    return depths


def depth_warnings(depths: Mapping[str, float], split: Split) -> list[str]:
    """A sentence for each validation slide and each test slide whose depth is far from that of the train slides.

    Args:
        depths: Slide ID -> median counts a spot. Slides without an entry, or with NaN, are passed over.
        split: Whose slides are compared; the depth of its train slides is the median of theirs.
    """
    of_train = [depths[slide] for slide in split.train if _is_known(depths, slide)]
    if not of_train:
        return []
    usual = float(np.median(of_train))
    follows = {
        "validation": "validation MSE then follows the slide's offset more than the model "
        "(--select-by centered_mse does not count it, --validate-on alike takes other slides)",
        "test": "its MSE then is to a large part the slide's offset (`centered` in metrics.json is without it)",
    }
    return [
        f"{part} slide {slide} has a median of {depths[slide]:,.0f} counts a spot, train slides {usual:,.0f}: {text}"
        for (part, text), slides in zip(follows.items(), (split.val, split.test), strict=True)
        for slide in slides
        if _is_known(depths, slide) and _is_far(depths[slide], usual)
    ]


def _is_known(depths: Mapping[str, float], slide: str) -> bool:
    return not np.isnan(depths.get(slide, np.nan))


def _is_far(depth: float, usual: float) -> bool:
    return depth > FAR_DEPTH * usual or FAR_DEPTH * depth < usual
