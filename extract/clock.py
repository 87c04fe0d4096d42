"""What encoding costs: crops, time, and the time spent waiting for pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """What encoding has cost so far."""

    crops: int = 0
    """Number of crops encoded."""
    seconds: float = 0.0
    """Time taken."""
    waiting: float = 0.0
    """The part of that time in which the encoder waited for pixels, seconds."""

    def add(self, other: Clock) -> None:
        """Count what other encoding has cost too; the seconds are those of all that encode at once, together."""
        self.crops += other.crops
        self.seconds += other.seconds
        self.waiting += other.waiting

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the encoder waited for pixels, 0..1."""
        return self.waiting / self.seconds if self.seconds else 0.0
