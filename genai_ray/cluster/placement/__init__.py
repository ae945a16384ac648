"""Where sessions are placed and what is evicted for them: plain Python, without Ray and without a clock of its own.

* ``slots``: devices, sessions, and what new sessions need.
* ``ledger``: all devices and sessions, and the budgets; what is free, and the order of eviction.
* ``planner``: the decisions: ``plan`` for one session, ``plan_all`` for several that are needed together.
"""

from genai_ray.cluster.placement.ledger import Ledger
from genai_ray.cluster.placement.planner import check_all_fit, check_fits, plan, plan_all
from genai_ray.cluster.placement.slots import Device, EvictionPolicy, Need, Plan, Record, Slot, SlotState, gdsf_worth

__all__ = [
    "Device",
    "EvictionPolicy",
    "Ledger",
    "Need",
    "Plan",
    "Record",
    "Slot",
    "SlotState",
    "check_all_fit",
    "check_fits",
    "gdsf_worth",
    "plan",
    "plan_all",
]
