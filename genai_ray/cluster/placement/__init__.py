"""Where sessions go and what goes for them: plain Python, without Ray and without a clock of its own."""

from genai_ray.cluster.placement.ledger import Ledger
from genai_ray.cluster.placement.planner import check_all_fit, check_fits, plan, plan_all
from genai_ray.cluster.placement.policy import EvictionPolicy, gdsf_worth
from genai_ray.cluster.placement.slots import Device, Need, Plan, Slot, SlotState

__all__ = [
    "Device",
    "EvictionPolicy",
    "Ledger",
    "Need",
    "Plan",
    "Slot",
    "SlotState",
    "check_all_fit",
    "check_fits",
    "gdsf_worth",
    "plan",
    "plan_all",
]
