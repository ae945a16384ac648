"""What goes first: the order in which idle sessions leave, as plain functions of what is known of a session."""

from __future__ import annotations

import math
from enum import StrEnum

__all__ = ["EvictionPolicy", "Order", "gdsf_worth", "order_of"]

Order = tuple[bool, float, bool, float]
"""Sorts sessions: the smallest goes first."""


class EvictionPolicy(StrEnum):
    """Which idle session leaves first."""

    LRU = "lru"
    """The one that was not used for the longest time."""
    GDSF = "gdsf"
    """The one whose return costs least for what it takes: GreedyDual-Size with frequency."""


def gdsf_worth(inflation: float, uses: int, load_s: float, num_bytes: int) -> float:
    """Return what a session is worth under GreedyDual-Size with frequency (Cherkasova, HPL-98-69R1, 1998): L + F * C / S.

    Args:
        inflation: L, the worth of the session that left last: what is not used loses against it as time goes.
        uses: F, uses since it was loaded; at least one counts.
        load_s: C, seconds that loading and warming it took.
        num_bytes: S, bytes that it takes; seconds a gigabyte is the unit of worth.

    Returns:
        Its worth, on the scale of ``inflation``.
    """
    return inflation + max(uses, 1) * load_s / (max(num_bytes, 1) / 1e9)


def order_of(policy: EvictionPolicy, *, is_surplus: bool, is_online: bool, last_used_s: float, worth: float) -> Order:
    """Return where a session stands in the order of leaving.

    Args:
        policy: By what.
        is_surplus: Whether it is an idle replica beside another: those go first.
        is_online: Whether it was last used by a request that somebody waits for: it outlives one of equal recency, to the second.
        last_used_s: Its last known use.
        worth: Its ``gdsf_worth``.

    Returns:
        A sort key.
    """
    coarse = math.floor(last_used_s) if policy is EvictionPolicy.LRU else worth
    return not is_surplus, coarse, is_online, last_used_s
