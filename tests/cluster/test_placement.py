"""Ledger and placement under any order of events, without Ray: the invariants of the design, and what goes for what."""

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from genai_ray import errors
from genai_ray.cluster.placement import (
    Device,
    EvictionPolicy,
    Ledger,
    Need,
    Slot,
    SlotState,
    check_all_fit,
    check_fits,
    gdsf_worth,
    plan,
    plan_all,
)

KEYS = st.sampled_from("abcdefgh")
KINDS = ("cpu", "L4")


class LedgerMachine(RuleBasedStateMachine):
    """Loads, uses, pins, leases, grows, dies and evicts as a cache does, while nodes come and go and the budget is
    changed.

    A process that has grown has grown: until something goes for it, books say so, and nothing more is placed beyond the
    budget.
    """

    @initialize(
        total=st.none() | st.integers(500, 2500),
        policy=st.sampled_from(EvictionPolicy),
        unit=st.sampled_from((1, 10, 70)),
    )
    def begin(self, total, policy, unit):
        self.ledger, self.unit = Ledger(total, policy), unit
        self.clock, self.names, self.leased, self.has_grown = 0.0, 0, [], False
        self.add(0, 1000, 1000)

    def now(self):
        self.clock += 0.7
        return self.clock

    @rule(kind=st.sampled_from((0, 1)), budget=st.integers(200, 1000), capacity=st.integers(200, 1200))
    def add(self, kind, budget, capacity):
        self.names += 1
        capacity = capacity // self.unit * self.unit
        name, node = f"device {self.names}", f"node {self.names % 3}"
        self.ledger.add_device(Device(name, node, KINDS[kind], budget, capacity, self.unit))

    @precondition(lambda self: len(self.ledger.devices) > 1)
    @rule(data=st.data())
    def node_leaves(self, data):
        device = data.draw(st.sampled_from(sorted(self.ledger.devices)))
        there = {slot.name for slot in self.ledger.slots.values() if slot.device_id == device}
        assert set(self.ledger.remove_device(device)) == there
        self.has_grown = True

    @rule(total=st.none() | st.integers(300, 2500))
    def budget_is_changed(self, total):
        self.ledger.total_bytes = total
        self.has_grown = True

    @rule(
        key=KEYS,
        num_bytes=st.integers(1, 900),
        floor=st.integers(0, 900),
        kinds=st.none() | st.sets(st.sampled_from(KINDS), min_size=1),
        node=st.integers(0, 3),
        reuses=st.booleans(),
    )
    def load(self, key, num_bytes, floor, kinds, node, reuses):
        need = Need(key, max(num_bytes, floor), None if kinds is None else frozenset(kinds), f"node {node}")
        found = plan(self.ledger, need)
        assert (found is not None) == self.could_fit(need)
        if found is None:
            return
        self.check_choice(need, found)
        local = [name for name in found.victims if self.ledger.slots[name].device_id == found.device_id]
        fitting = (name for name in local if reuses and self.ledger.can_take_over(need, name, found.victims))
        donor = next(fitting, None)
        for name in found.victims:
            if name != donor:
                self.evict(name)
        self.names += 1
        slot = Slot(name=f"session {self.names}", key=key, floor_bytes=floor)
        if donor is None:
            self.ledger.reserve(slot, need, found.device_id, self.now())
        else:
            self.take_over(slot, need, donor)
        assert slot.state is SlotState.LOADING
        assert self.ledger.excess_bytes(found.device_id) <= 0

    @rule(
        keys=st.lists(KEYS, min_size=2, max_size=3, unique=True),
        sizes=st.lists(st.integers(1, 600), min_size=3, max_size=3),
    )
    def load_together(self, keys, sizes):
        needs = [Need(key, size) for key, size in zip(keys, sizes, strict=False) if not self.ledger.of_key(key)]
        self.lease(keys)
        before = self.ledger.used_bytes
        plans = plan_all(self.ledger, needs)
        assert self.ledger.used_bytes == before
        assert (plans is not None) == self.could_all_fit(needs)
        if plans is None:
            self.ledger.unlease(self.leased.pop())
            return
        check_all_fit(self.ledger, needs)
        for need, found in zip(needs, plans, strict=True):
            for name in found.victims:
                assert self.ledger.slots[name].key not in keys
                self.evict(name)
            self.names += 1
            slot = Slot(name=f"session {self.names}", key=need.key)
            self.ledger.reserve(slot, need, found.device_id, self.now())
            assert self.ledger.excess_bytes(found.device_id) <= 0

    def take_over(self, slot, need, donor):
        """What Ray holds stays as it is: enough, at most half as much again as for a new process, and so little that
        every byte of the budget can still be used."""
        assert self.is_free_to_go(self.ledger.slots[donor])
        held, device_id = self.ledger.slots[donor].held_bytes, self.ledger.slots[donor].device_id
        device = self.ledger.devices[device_id]
        all_held = device.held_bytes
        self.ledger.mark(donor, state=SlotState.RETIRING)
        self.ledger.take_over(slot, need, donor, self.now())
        assert donor not in self.ledger.slots
        assert (slot.device_id, slot.reserved_bytes, slot.held_bytes) == (device_id, need.num_bytes, held)
        new = -(-need.num_bytes // self.unit) * self.unit
        assert new <= held <= 1.5 * new
        assert device.held_bytes == all_held
        assert device.capacity_bytes - device.held_bytes >= device.budget_bytes - device.used_bytes

    @precondition(lambda self: self.ledger.slots)
    @rule(data=st.data(), num_bytes=st.integers(1, 900))
    def take_over_or_change_nothing(self, data, num_bytes):
        """Whatever is asked of it: the session may be at work for all that the ledger knows."""
        name = data.draw(st.sampled_from(sorted(self.ledger.slots)))
        before, donor = self.state(), self.ledger.slots[name]
        self.names += 1
        slot = Slot(name=f"session {self.names}", key=donor.key)
        fits = self.ledger.can_take_over(Need("new", num_bytes), name)
        try:
            self.ledger.take_over(slot, Need("new", num_bytes), name, self.now())
        except errors.ResourceExhaustedError:
            assert self.state() == before
            assert (slot.state, slot.device_id) == (SlotState.WAITING, "")
        else:
            assert fits
            assert donor.state is SlotState.WAITING

    def state(self):
        """All that the ledger knows, to compare."""
        ledger = self.ledger
        return (
            ledger.used_bytes,
            list(ledger.evictable()),
            {key: list(ledger.of_key(key)) for key in "abcdefgh"},
            {name: (slot.state, slot.device_id, slot.held_bytes) for name, slot in ledger.slots.items()},
            {name: (device.used_bytes, device.held_bytes) for name, device in ledger.devices.items()},
        )

    def could_fit(self, need):
        """Whether the bytes of all that may go, on one device and in all, are enough: counted without the code under
        test."""
        may_go = [slot for slot in self.ledger.slots.values() if self.is_free_to_go(slot) and slot.key != need.key]
        if need.num_bytes > self.ledger.budget_bytes - self.ledger.used_bytes + sum(
            slot.reserved_bytes for slot in may_go
        ):
            return False
        for device in self.ledger.devices.values():
            local = [slot for slot in may_go if slot.device_id == device.device_id]
            if need.kinds is not None and device.kind not in need.kinds:
                continue
            used = device.budget_bytes - device.used_bytes + sum(slot.reserved_bytes for slot in local)
            held = device.capacity_bytes - device.held_bytes + sum(slot.held_bytes for slot in local)
            if min(used, held) >= need.num_bytes:
                return True
        return False

    def could_all_fit(self, needs):
        """Whether some way to spread them over the devices has room for each, with all gone that may go: every way is
        tried."""
        may_go = [slot for slot in self.ledger.slots.values() if self.is_free_to_go(slot)]
        if needs and sum(need.num_bytes for need in needs) > self.ledger.budget_bytes - self.ledger.used_bytes + sum(
            slot.reserved_bytes for slot in may_go
        ):
            return False
        rooms = {}
        for device in self.ledger.devices.values():
            local = [slot for slot in may_go if slot.device_id == device.device_id]
            used = device.budget_bytes - device.used_bytes + sum(slot.reserved_bytes for slot in local)
            held = device.capacity_bytes - device.held_bytes + sum(slot.held_bytes for slot in local)
            rooms[device.device_id] = max(used, 0), max(held, 0)

        def has_room(name, sizes):
            held = sum(-(-size // self.unit) * self.unit for size in sizes)
            return sum(sizes) <= rooms[name][0] and held <= rooms[name][1]

        return any(
            all(
                has_room(name, [need.num_bytes for need, at in zip(needs, places, strict=True) if at == name])
                for name in rooms
            )
            for places in product(rooms, repeat=len(needs))
        )

    def is_free_to_go(self, slot):
        return (
            slot.state is SlotState.READY and not slot.is_pinned and not any(slot.key in keys for keys in self.leased)
        )

    def check_choice(self, need, found):
        """Free room comes first; else nobody who stays could have gone instead of somebody who was used later."""
        device = self.ledger.devices[found.device_id]
        assert need.kinds is None or device.kind in need.kinds
        roomy = [
            d
            for d in self.ledger.devices.values()
            if d.free_bytes >= need.num_bytes and (need.kinds is None or d.kind in need.kinds)
        ]
        if roomy and need.num_bytes <= self.ledger.budget_bytes - self.ledger.used_bytes:
            assert found.victims == ()
            preferred = [d for d in roomy if d.node == need.node]
            assert device.free_bytes == min(d.free_bytes for d in preferred or roomy)
            return
        if roomy:  # only the total is short, or taken by sessions that grew elsewhere
            assert found.device_id in {d.device_id for d in roomy}
            return
        places = {slot.name: place for place, slot in enumerate(self.ledger.evictable())}
        assert [places[name] for name in found.victims] == sorted(places[name] for name in found.victims)
        if self.ledger.total_bytes is None and found.victims:
            newest = {}
            for d in self.ledger.devices.values():
                used, held = d.budget_bytes - d.used_bytes, d.capacity_bytes - d.held_bytes
                for slot in self.ledger.evictable():
                    if slot.device_id == d.device_id and slot.key != need.key and min(used, held) < need.num_bytes:
                        used, held = used + slot.reserved_bytes, held + slot.held_bytes
                        newest[d.device_id] = places[slot.name]
                if min(used, held) < need.num_bytes or (need.kinds is not None and d.kind not in need.kinds):
                    newest.pop(d.device_id, None)
            assert newest[found.device_id] == min(newest.values())

    def evict(self, name):
        slot = self.ledger.slots[name]
        assert self.is_free_to_go(slot)
        self.ledger.mark(name, state=SlotState.RETIRING)
        assert slot not in list(self.ledger.evictable())
        self.ledger.release(name)

    @precondition(lambda self: self.has_grown)
    @rule()
    def settle_down(self):
        """Do what a cache does where something is over its budget: idle ones go, then the one that grew."""
        self.has_grown = False
        for device_id in list(self.ledger.devices):
            while self.ledger.excess_bytes(device_id) > 0:
                on_device = self.ledger.devices[device_id].used_bytes > self.ledger.devices[device_id].budget_bytes
                victim = next(
                    (slot for slot in self.ledger.evictable() if not on_device or slot.device_id == device_id), None
                )
                if victim is None:
                    victim = next(
                        slot
                        for slot in reversed(self.ledger.slots.values())
                        if not on_device or slot.device_id == device_id
                    )
                self.ledger.release(victim.name)

    @precondition(lambda self: any(slot.state is SlotState.LOADING for slot in self.ledger.slots.values()))
    @rule(data=st.data(), share=st.floats(0.1, 1.5), load_s=st.floats(0.1, 50))
    def loaded(self, data, share, load_s):
        name = data.draw(
            st.sampled_from(sorted(slot.name for slot in self.ledger.slots.values() if slot.state is SlotState.LOADING))
        )
        slot = self.ledger.slots[name]
        measured = int(slot.reserved_bytes * share) + 1
        self.ledger.settle(name, measured, load_s, self.now())
        assert slot.reserved_bytes == max(measured, slot.floor_bytes)
        self.has_grown = True

    @precondition(lambda self: self.ledger.slots)
    @rule(
        data=st.data(),
        what=st.sampled_from(("use", "pin", "unpin", "surplus", "grow", "die", "refuse", "move")),
        number=st.integers(1, 300),
    )
    def happens(self, data, what, number):
        name = data.draw(st.sampled_from(sorted(self.ledger.slots)))
        slot = self.ledger.slots[name]
        if what == "use":
            self.ledger.use(name, self.now(), slot.uses + number, number % 2 == 0)
        elif what in ("pin", "unpin"):
            self.ledger.mark(name, is_pinned=what == "pin")
        elif what == "surplus":
            self.ledger.mark(name, is_surplus=True)
        elif what == "grow" and slot.state is SlotState.READY:
            self.ledger.grow(name, slot.reserved_bytes + number)
            self.has_grown = True
        elif what == "die":
            self.ledger.release(name)
        elif what == "refuse" and slot.state is SlotState.READY:
            self.ledger.mark(name, state=SlotState.RETIRING)
            self.ledger.mark(name, state=SlotState.READY)
        elif what == "move" and slot.state is SlotState.LOADING:
            device = data.draw(st.sampled_from(sorted(self.ledger.devices)))
            room = self.ledger.devices[device]
            self.ledger.move(name, device)
            if room.held_bytes > room.capacity_bytes:
                self.ledger.release(name)
            self.has_grown = True

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3))
    def lease(self, keys):
        self.leased.append(keys)
        self.ledger.lease(keys)

    @precondition(lambda self: self.leased)
    @rule()
    def unlease(self):
        self.ledger.unlease(self.leased.pop(0))

    @invariant()
    def never_over_budget(self):
        for device in self.ledger.devices.values():
            slots = [slot for slot in self.ledger.slots.values() if slot.device_id == device.device_id]
            assert device.used_bytes == sum(slot.reserved_bytes for slot in slots)
            assert device.used_bytes <= device.budget_bytes or self.has_grown
            assert device.held_bytes == sum(slot.held_bytes for slot in slots) <= device.capacity_bytes
        assert self.ledger.used_bytes == sum(slot.reserved_bytes for slot in self.ledger.slots.values())
        assert self.ledger.used_bytes <= self.ledger.budget_bytes or self.has_grown

    @invariant()
    def only_who_is_free_leaves_and_in_order(self):
        leaving = list(self.ledger.evictable())
        assert {slot.name for slot in leaving} == {
            slot.name for slot in self.ledger.slots.values() if self.is_free_to_go(slot)
        }
        if self.ledger.policy is EvictionPolicy.LRU:
            order = [(not slot.is_surplus, int(slot.last_used_s), slot.is_online, slot.last_used_s) for slot in leaving]
        else:
            order = [(not slot.is_surplus, slot.worth) for slot in leaving]
        assert order == sorted(order)


def test_no_history_breaks_an_invariant():
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None))


@pytest.mark.slow
def test_no_long_history_breaks_an_invariant():
    run_state_machine_as_test(
        LedgerMachine, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None)
    )


def ledger_of(*budgets, policy=EvictionPolicy.LRU, total=None):
    ledger = Ledger(total, policy)
    for index, budget in enumerate(budgets):
        ledger.add_device(Device(f"d{index}", f"n{index}", "cpu", budget, budget))
    return ledger


def put(ledger, key, num_bytes, device="d0", *, used_s=0.0, load_s=1.0, uses=1):
    ledger.reserve(Slot(name=key, key=key), Need(key, num_bytes), device, used_s)
    ledger.settle(key, num_bytes, load_s, used_s)
    ledger.use(key, used_s, uses)


def test_what_can_never_fit_is_refused_with_both_figures():
    with pytest.raises(errors.ResourceExhaustedError, match=r"big needs 1001 bytes.*1000 bytes"):
        check_fits(ledger_of(1000, 900), Need("big", 1001))
    with pytest.raises(errors.ResourceExhaustedError, match="no device is there that will do"):
        check_fits(ledger_of(1000), Need("big", 10, frozenset({"L4"})))
    ledger = ledger_of(1000)
    check_fits(ledger, Need("big", 1000))
    put(ledger, "a", 300)
    ledger.mark("a", is_pinned=True)
    with pytest.raises(errors.ResourceExhaustedError, match=r"701 bytes.*700 bytes beside what is pinned"):
        check_fits(ledger, Need("big", 701))
    with pytest.raises(errors.ResourceExhaustedError, match=r"b, c need 800 bytes together"):
        check_all_fit(ledger, [Need("b", 400), Need("c", 400)])


def test_what_ray_holds_for_pinned_sessions_is_not_free_either():
    """A pinned session takes 100 bytes in a process for which Ray holds 700."""
    ledger = Ledger(None)
    ledger.add_device(Device("d0", "n0", "cpu", 900, 1000))
    ledger.reserve(Slot(name="a", key="a"), Need("a", 700), "d0", 0.0)
    ledger.settle("a", 100, 1.0, 0.0)
    ledger.mark("a", is_pinned=True)
    check_fits(ledger, Need("b", 300))
    with pytest.raises(errors.ResourceExhaustedError, match="300 bytes beside what is pinned"):
        check_fits(ledger, Need("b", 301))


@pytest.mark.parametrize(("budget", "fits"), [(700, True), (901, False)])
def test_ray_holds_nothing_that_the_budget_could_use(budget, fits):
    """Ray holds 300 of 1000 bytes for a process whose next session takes 200: of 901 bytes one could not be used."""
    ledger = Ledger(None)
    ledger.add_device(Device("d0", "n0", "cpu", budget, 1000))
    put(ledger, "a", 300)
    assert ledger.can_take_over(Need("b", 200), "a") == fits
    put(ledger, "c", 300)
    assert ledger.can_take_over(Need("b", 200), "a", ["a", "c"]) == fits


def test_models_placed_together_share_devices_best():
    """24 bytes by themselves go best to the smaller device, where they take the room of 177; a turn later that is too
    late."""
    ledger = ledger_of(200, 201)
    needs = [Need("b", 24), Need("c", 177), Need("d", 177)]
    check_all_fit(ledger, needs)
    plans = plan_all(ledger, needs)
    for need, found in zip(needs, plans, strict=True):
        ledger.reserve(Slot(name=need.key, key=need.key), need, found.device_id, 0.0)
    assert [found.device_id for found in plans].count("d1") == 2
    alike = ledger_of(*[100] * 40)
    assert plan_all(alike, [Need(str(number), 60) for number in range(41)]) is None
    assert len(plan_all(alike, [Need(str(number), 60) for number in range(40)])) == 40


def test_the_total_is_kept_beside_the_devices_budgets():
    ledger = ledger_of(1000, 1000, total=1500)
    put(ledger, "old", 700, "d0", used_s=1)
    put(ledger, "new", 700, "d1", used_s=2)
    found = plan(ledger, Need("c", 250))
    assert found.victims == ("old",)


def test_idle_replicas_and_batch_models_go_first():
    ledger = ledger_of(1000)
    put(ledger, "a", 300, used_s=1.0)
    put(ledger, "b", 300, used_s=2.1)
    put(ledger, "c", 300, used_s=2.2)
    ledger.use("b", 2.1, 2, True)
    assert [slot.name for slot in ledger.evictable()] == ["a", "c", "b"]
    ledger.mark("c", is_surplus=True)
    assert [slot.name for slot in ledger.evictable()] == ["c", "a", "b"]
    ledger.use("c", 2.9, 5)
    assert [slot.name for slot in ledger.evictable()] == ["a", "c", "b"]


def test_gdsf_keeps_what_is_dear_to_load_and_forgets_it_in_time():
    ledger = ledger_of(1000, policy=EvictionPolicy.GDSF)
    put(ledger, "dear", 300, used_s=1.0, load_s=20.0)
    put(ledger, "cheap", 300, used_s=2.0, load_s=1.0)
    assert [slot.name for slot in ledger.evictable()] == ["cheap", "dear"]
    for number in range(30):  # each that goes raises the worth that the next one starts from
        name = next(ledger.evictable()).name
        if name == "dear":
            break
        ledger.mark(name, state=SlotState.RETIRING)
        ledger.release(name)
        put(ledger, f"cheap {number}", 300, used_s=3.0 + number)
    assert name == "dear"
    assert gdsf_worth(1.0, 2, 10.0, 500_000_000) == 41.0


def test_a_new_ledger_adopts_a_session_over_its_reservation():
    """Of 600 bytes Ray holds 590; the sessions take 180 and 348 of a budget of 570."""

    def ledger():
        empty = Ledger(None)
        empty.add_device(Device("d0", "n0", "cpu", 570, 600))
        return empty

    first, again = ledger(), ledger()
    for name, held, taken in (("a", 300, 180), ("b", 290, 348)):
        first.reserve(Slot(name=name, key=name), Need(name, held), "d0", 0.0)
        first.settle(name, taken, 1.0, 0.0)
        again.reserve(Slot(name=name, key=name), Need(name, taken), "d0", 0.0, held)
    assert (
        (first.used_bytes, first.devices["d0"].held_bytes)
        == (again.used_bytes, again.devices["d0"].held_bytes)
        == (528, 590)
    )
    with pytest.raises(errors.ResourceExhaustedError, match="10 bytes are free"):
        again.reserve(Slot(name="c", key="c"), Need("c", 11), "d0", 0.0)
    with pytest.raises(errors.ResourceExhaustedError, match="10 bytes are free"):
        again.reserve(Slot(name="c", key="c"), Need("c", 5), "d0", 0.0, 11)
