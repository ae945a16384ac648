"""The ledger under any order of events, without Ray."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from genai_ray import errors
from genai_ray.cluster.placement import Ledger, SlotState

BUDGET = 1000
KEYS = st.sampled_from("abcdef")


class LedgerMachine(RuleBasedStateMachine):
    """Loads, uses, pins and evicts as a cache does, beside a model that is obviously right."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(BUDGET)
        self.clock = 0.0

    def now(self):
        self.clock += 1
        return self.clock

    @rule(key=KEYS, needed=st.integers(1, 700), floor=st.integers(0, 700))
    def load(self, key, needed, floor):
        if key in self.ledger.slots:
            return
        needed = max(needed, floor)
        while not self.ledger.has_room(needed):
            victim = self.ledger.stalest(frozenset([key]))
            if victim is None:
                with pytest.raises(errors.ResourceExhaustedError):
                    self.ledger.reserve(key, needed, floor, self.now())
                return
            self.evict(victim)
        slot = self.ledger.reserve(key, needed, floor, self.now())
        assert slot.state is SlotState.LOADING

    def evict(self, victim):
        ready = [slot for slot in self.ledger.slots.values() if slot.state is SlotState.READY and not slot.pinned]
        assert victim.state is SlotState.READY
        assert not victim.pinned
        assert victim.last_used_s == min(slot.last_used_s for slot in ready)
        victim.state = SlotState.RETIRING
        assert self.ledger.stalest() is not victim
        self.ledger.release(victim.key)

    @precondition(lambda self: any(slot.state is SlotState.LOADING for slot in self.ledger.slots.values()))
    @rule(data=st.data(), share=st.floats(0.1, 1.5))
    def loaded(self, data, share):
        key = data.draw(st.sampled_from(sorted(slot.key for slot in self.ledger.slots.values() if slot.state is SlotState.LOADING)))
        slot = self.ledger.slots[key]
        measured = int(slot.reserved_bytes * share) + 1
        fits = self.ledger.settle(key, measured)
        assert slot.reserved_bytes == max(measured, slot.floor_bytes)
        assert fits == (self.ledger.used_bytes <= BUDGET)
        if not fits:
            self.ledger.release(key)

    @rule(key=KEYS)
    def use(self, key):
        if key in self.ledger.slots:
            self.ledger.slots[key].last_used_s = self.now()

    @rule(key=KEYS, pinned=st.booleans())
    def pin(self, key, pinned):
        if key in self.ledger.slots:
            self.ledger.slots[key].pinned = pinned

    @rule(key=KEYS)
    def die(self, key):
        self.ledger.release(key)

    @invariant()
    def never_over_budget(self):
        assert 0 <= self.ledger.used_bytes <= BUDGET
        assert self.ledger.used_bytes == sum(slot.reserved_bytes for slot in self.ledger.slots.values())

    @invariant()
    def recency_is_an_order_of_the_ready(self):
        order = self.ledger.by_recency()
        assert [slot.last_used_s for slot in order] == sorted(slot.last_used_s for slot in order)
        assert {slot.key for slot in order} == {key for key, slot in self.ledger.slots.items() if slot.state is SlotState.READY}


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_what_can_never_fit_is_refused_with_both_figures():
    with pytest.raises(errors.ResourceExhaustedError, match=r"big needs 1001 bytes.*1000 bytes"):
        Ledger(BUDGET).check_fits(1001, "big")
    Ledger(BUDGET).check_fits(1000, "big")
