"""A cluster in plain data, for tests that need no Ray."""

from __future__ import annotations

from hist_cache.cluster.facts import Node
from hist_cache.cluster.ray_cluster import Cluster


class PlainCluster(Cluster):
    """A cluster whose machines are told."""

    def __init__(self, *nodes: Node, own: bool = False) -> None:
        super().__init__("192.0.2.77:6379", own)
        self.there = list(nodes)
        self.asked: list[str] = []

    def nodes(self) -> list[Node]:
        return list(self.there)

    def lives(self, key: str) -> bool:
        self.asked.append(key)
        return any(node.key == key for node in self.there)

    def check_head(self) -> None:
        pass


def node(name: str, cpus: float = 1, gpus: float = 0, store: int = 0) -> Node:
    return Node(name, name, ("10.0.0.1", 1), cpus, gpus, store)
