"""TRIPLEX written again in numpy and float64, with a table of all pairs for each attention."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import erf, softmax

from hist_cache.lattice import Lattice, ring_neighbors
from train.data import Images, Surroundings
from train.models.configs import TriplexConfig
from train.models.triplex import TriplexModel


def hex_surroundings(side: int, width: int) -> Surroundings:
    """A rhombus of side x side spots on a hexagonal lattice, with two rings."""
    sites = np.stack(np.meshgrid(range(side), range(side)), axis=-1).reshape(-1, 2)
    rows = torch.from_numpy(ring_neighbors(Lattice("hex", sites, "array"), sites.astype(float), 1, 2)).long()
    spot = torch.randn(side**2, width, generator=torch.Generator().manual_seed(0)).half()
    nothing, one = torch.zeros(side**2, 2), torch.zeros(side**2, dtype=torch.int64)
    return Surroundings(spot, spot, one, nothing, (rows[:, :6], rows[:, 6:]), one)


class Dense:
    """The model again."""

    def __init__(self, model: TriplexModel) -> None:
        self.weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
        self.config = model.config

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray | float = 0) -> np.ndarray:
        """`(n, d)`, `(m, d)` and `(m, d)` to `(n, d)`; `bias` is `(heads, m)`."""
        heads, size = self.config.heads, self.config.width // self.config.heads
        bias = np.broadcast_to(bias, (heads, len(k)))
        parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
        logits = [q[:, part] @ k[:, part].T / np.sqrt(size) + bias[h] for h, part in enumerate(parts)]
        return np.concatenate([softmax(a, axis=1) @ v[:, part] for a, part in zip(logits, parts, strict=True)], axis=1)

    def feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        hidden = self.linear(f"{name}.layers.1", self.norm(f"{name}.layers.0", x))
        return x + self.linear(f"{name}.layers.4", hidden * (1 + erf(hidden / np.sqrt(2))) / 2)

    def block(self, name: str, x: np.ndarray, bias: np.ndarray | float = 0) -> np.ndarray:
        q, k, v = np.split(self.linear(f"{name}.to_qkv", self.norm(f"{name}.norm", x)), 3, axis=1)
        x = x + self.linear(f"{name}.mix", self.attention(q, k, v, bias))
        return self.feed_forward(f"{name}.feed_forward", x)

    def joined(self, query: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        for i in range(self.config.fusion_depth):
            name = f"fusion.{i}"
            seen = self.norm(f"{name}.norm", tokens)
            k, v = np.split(self.linear(f"{name}.to_key_value", seen), 2, axis=1)
            q = self.linear(f"{name}.to_query", self.norm(f"{name}.norm", query))
            query = query + self.linear(f"{name}.mix", self.attention(q, k, v))
            query = self.feed_forward(f"{name}.feed_forward", query)
        return query

    def slide(self, spots: Surroundings) -> np.ndarray:
        """Global tokens of one slide."""
        x = self.linear("enter_slide", spots.spot.double().numpy())
        for i in range(self.config.global_depth):
            x = self.block(f"global_encoder.blocks.{i}", x)
            if i == 0:
                around = self.weights["global_encoder.positions.around"]
                moved = [
                    sum(x[r] * around[place] for place, r in enumerate(row) if r >= 0) for row in spots.rings[0].numpy()
                ]
                own, bias = (self.weights[f"global_encoder.positions.{name}"] for name in ("own", "bias"))
                x = x + np.stack(moved) + x * own + bias
        return self.norm("global_encoder.norm", x)

    def neighbors(self, spots: Surroundings, row: int) -> np.ndarray:
        """Tokens of the spots that are there around a spot, and of the spot itself."""
        rings = [(ring[row].numpy(), first) for ring, first in zip(spots.rings, (0, 8), strict=True)]
        seen = [(int(r), first + place) for ring, first in rings for place, r in enumerate(ring) if r >= 0]
        seen.append((row, 24))
        rows, places = (list(part) for part in zip(*seen, strict=True))
        x = self.linear("enter_neighbor", spots.spot[rows].double().numpy())
        for i, bias in enumerate(self.weights["neighbor_encoder.place_bias"][:, :, places]):
            x = self.block(f"neighbor_encoder.blocks.{i}", x, bias)
        return self.norm("neighbor_encoder.norm", x)

    def fused(self, spots: Surroundings, row: int, token: np.ndarray) -> np.ndarray:
        """Prediction `(G,)` of a spot from its global token."""
        target = self.linear("enter_target", spots.spot[[row]].double().numpy())
        both = self.joined(token[None], target) + self.joined(token[None], self.neighbors(spots, row))
        return self.linear("to_genes", self.norm("norm", both))[0]


def test_it_is_what_dense_attention_gives_on_500_spots() -> None:
    spots = hex_surroundings(23, 12)
    torch.manual_seed(0)
    model = TriplexModel(TriplexConfig(12, 8, width=16, heads=2, fusion_depth=2, global_depth=3)).eval()
    with torch.no_grad():
        model.neighbor_encoder.place_bias.normal_()
    model.look_around(spots)
    dense = Dense(model)
    tokens = dense.slide(spots)
    assert len(tokens) == 529
    np.testing.assert_allclose(model.slide_tokens([0])[0].numpy(), tokens, atol=1e-4)
    rows = torch.tensor([0, 22, 264, 300, 528])  # corners, which lack neighbours, and spots inside
    images = Images(spots.spot[rows].float(), spots.niche[rows].float(), rows)
    with torch.no_grad():
        predicted, features = model.predict(images).numpy(), model.features(images)
    np.testing.assert_allclose(predicted, [dense.fused(spots, int(row), tokens[row]) for row in rows], atol=1e-4)
    means = [dense.neighbors(spots, int(row)).mean(0) for row in rows]
    np.testing.assert_allclose(features.neighbor.numpy(), means, atol=1e-4)
    np.testing.assert_allclose(features.slide.numpy(), tokens[rows], atol=1e-4)
