"""What a cache decides under any order of events, without Ray: one load for many waiters, ends by deadlines, books rebuilt after a restart.

The code is the cache's own: books, leases, placing, single flight, the entry of what sessions report. The machine plays what lies beyond it,
the processes: they start, load, refuse, end and die when it says so, on a clock of its own. Steps that are calls of Ray in between (``Loader.finish``,
``Evictor.end``, ``Maintenance.watch``) it repeats in a few lines; they themselves are tested on real clusters.
"""

import asyncio
import copy
import itertools
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
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
from genai_ray.cluster.cache import CacheOptions, actor, eviction, leases, loading, maintenance, session_table
from genai_ray.cluster.cache.measured_sizes import GROWTH_BYTES, SizeMemory
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.devices import CPU, LOGICAL_GPU, Started
from genai_ray.cluster.messages import Description, LeaseRequest, LoadRequest, RetentionInfo, SessionRequest, key_of
from genai_ray.cluster.placement import Device, EvictionPolicy, Ledger, Need, SlotState, plan, plan_all
from genai_ray.types import ModelBackend, ModelPrecision

MB = 1_000_000
MODELS = [
    SessionRequest(
        f"model-{number}",
        ModelBackend.ONNX,
        ModelPrecision.FP32,
        device="cpu" if number == 4 else "auto",
        floor_bytes=floor,
    )
    for number, floor in enumerate((None, None, 300 * MB, None, None, 150 * MB))
]
NUMBERS = st.integers(0, len(MODELS) - 1)
TURNS = 16
"""Turns of the event loop after which nothing happens any more before the clock moves."""


class NoProcesses:
    """The processes of sessions that have none."""

    def kill(self, record):
        pass

    async def kill_and_wait(self, record):
        pass


class Clock:
    """Takes the place of ``time`` and ``uuid`` in the modules of the cache, and of the event loop's clock: a history is the same each time."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.now_s, self._names = 0.0, itertools.count(1)

    def monotonic(self):
        return self.now_s

    def uuid4(self):
        return uuid.UUID(int=next(self._names) << 80)


class Loop(asyncio.SelectorEventLoop):
    """Wakes whoever sleeps by the clock of the test."""

    def time(self):
        return CLOCK.now_s


CLOCK = Clock()


@dataclass
class Waiter:
    """A request on its way."""

    task: asyncio.Task
    want: LoadRequest
    until_s: float


class CacheMachine(RuleBasedStateMachine):
    """Asks, loads, uses, pins, leases, evicts and kills, while nodes come and go and the cache itself starts again."""

    @initialize(
        total=st.none() | st.integers(300, 1200),
        policy=st.sampled_from(EvictionPolicy),
        chance=st.randoms(use_true_random=False),
    )
    def begin_history(self, total, policy, chance):
        self.chance, self.doomed = chance, set()
        CLOCK.begin()
        self.loop, self.folder = Loop(), tempfile.TemporaryDirectory()
        self.total, self.policy = total and total * MB, policy
        self.sizes = SizeMemory(Path(self.folder.name, "sizes.json"))
        self.nodes, self.processes, self.waiters, self.count, self.kept = {}, {}, [], 0, {}
        self.open()
        self.node_comes(0, 600, 1)

    def open(self):
        """Make the parts of a cache as its actor does."""
        self.book = session_table.SessionTable(Ledger(self.total, self.policy), NoProcesses())
        self.ledger = self.book.ledger
        self.loader = loading.Loader(self.book, 300.0, self.sizes, None)
        self.evictor = eviction.Evictor(self.book, self.loader.need_of, 0.0, lambda slot: None)
        self.leases = leases.Leases(self.book, self.evictor, self.loader.need_of, self.begin)

    def teardown(self):
        if hasattr(self, "loop"):
            self.time_passes(max((waiter.until_s - CLOCK.now_s for waiter in self.waiters), default=0.0) + 0.2)
            assert not self.waiters
            self.loop.close()
            self.folder.cleanup()

    def drive(self, work=None):
        """Run what is ready, and return what the work returns."""

        async def turn():
            result = None if work is None else await work
            for _ in range(TURNS):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(turn())

    def begin(self, entry):
        """What the actor does; how the load goes on is the machine's choice."""
        if not entry.is_begun:
            others = [other for other in self.book.of_key(entry.key) if other is not entry]
            if not entry.avoid:
                assert not others, "a load began beside another session of its entry"
            entry.is_begun = True
            self.book.add(entry)

    def entries(self, is_wanted):
        return sorted((entry for entry in self.book.records.values() if is_wanted(entry)), key=lambda entry: entry.name)

    def slots(self, *states):
        return [slot.name for slot in self.ledger.slots.values() if slot.state in states]

    def draw(self, data, values):
        return data.draw(st.sampled_from(list(values)))

    # Requests

    @rule(
        number=NUMBERS,
        count=st.integers(1, 4),
        within_s=st.floats(0.1, 20),
        predicted=st.integers(100, 500),
        is_explicit=st.booleans(),
    )
    def ask(self, number, count, within_s, predicted, is_explicit):
        model = MODELS[number]
        before, key = self.book.of_key(key_of(model)), key_of(model)
        for _ in range(count):
            self.wait(
                LoadRequest(model, model.model, predicted * MB, is_explicit=is_explicit, within_s=within_s),
                CLOCK.now_s + within_s,
            )
        self.drive()
        new = [entry for entry in self.book.of_key(key) if entry not in before]
        assert len(new) <= (0 if before else 1)

    def wait(self, want, until_s):
        work = self.loader.join(want, until_s, self.begin)
        self.waiters.append(Waiter(self.loop.create_task(work), want, until_s))

    @rule(seconds=st.floats(0.05, 8))
    def time_passes(self, seconds):
        end_s = CLOCK.now_s + seconds
        while CLOCK.now_s < end_s:
            CLOCK.now_s = min(CLOCK.now_s + 0.5, end_s)
            self.drive()
            self.everybody_ends_by_the_deadline()

    # Loads

    def unplaced(self):
        return self.entries(lambda entry: entry.is_begun and not entry.ready.is_set() and not entry.is_placed)

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
    def time_does_its_work(self, choices):
        """Loads go on, each by a step: a place, a process, its end; what retires ends."""
        for number in choices:
            steps = [(self.is_placed, entry) for entry in self.unplaced()]
            steps += [(self.process_starts, name) for name in sorted(self.placed())]
            steps += [(self.loads_to_its_end, name) for name in sorted(self.loads())]
            steps += [(self.ends, name) for name in sorted(self.slots(SlotState.RETIRING))]
            if steps:
                step, what = steps[number % len(steps)]
                step(what)
                self.never_over_budget()

    def is_placed(self, entry):
        """What ``Evictor.place`` does: victims are asked, which the machine answers, or there is room, or nobody waits any more."""
        found = plan(self.ledger, self.loader.need_of(entry))
        if found is not None and found.victims:
            for name in found.victims:
                self.retires(name)
            return
        assert self.drive(self.evictor.try_place([entry])) == (found is not None)
        if found is None:
            assert isinstance(entry.blocked, errors.ResourceExhaustedError)
            if entry.waiters == 0:
                self.loader.fail(entry, entry.blocked)
        self.drive()

    def retires(self, name):
        slot = self.ledger.slots[name]
        assert slot.state is SlotState.READY
        assert not slot.is_pinned
        assert not self.ledger.is_leased(slot.key)
        self.ledger.mark(name, state=SlotState.RETIRING)
        self.processes[name] = replace(self.processes[name], retired=True)

    @precondition(lambda self: list(self.ledger.evictable()))
    @rule(data=st.data())
    def somebody_evicts(self, data):
        self.retires(self.draw(data, [slot.name for slot in self.ledger.evictable()]))

    def ends(self, name):
        del self.processes[name]
        entry = self.book.records[name]
        if entry.ready.is_set():
            self.book.drop(entry)
        else:
            self.tries_again(entry)
        self.drive()

    def refusing(self):
        """Sessions that this life of the cache has asked to retire: an earlier one's are ended, as those that failed to load."""
        return [
            name
            for name in self.slots(SlotState.RETIRING)
            if name not in self.doomed and self.book.records[name].ready.is_set()
        ]

    @precondition(lambda self: self.refusing())
    @rule(data=st.data())
    def refuses_to_retire(self, data):
        name = self.draw(data, self.refusing())
        self.processes[name] = replace(self.processes[name], retired=False)
        entry = self.book.records[name]
        self.book.revive(entry)
        self.drive()
        waiting = [
            waiter for waiter in self.waiters if key_of(waiter.want.request) == entry.key and not waiter.task.done()
        ]
        assert not waiting or any(
            not other.ready.is_set() for other in self.book.of_key(entry.key)
        )  # sent back at once, but for those of a replica

    def placed(self):
        return [name for name in self.slots(SlotState.LOADING) if name not in self.processes]

    def process_starts(self, name):
        entry, slot = self.book.records[name], self.ledger.slots[name]
        node, _, word = slot.device_id.partition("/")
        entry.handle = self.hears(name)
        entry.started = Started(node, None if word == CPU else word.removeprefix("gpu"), self.count, 80 * MB)
        self.processes[name] = Description(
            "cache",
            entry.load_request.request,
            entry.load_request.digest,
            entry.started,
            slot.reserved_bytes,
            slot.held_bytes,
            None,
            0.0,
            RetentionInfo(),
            retired=False,
        )

    def loads(self):
        return [name for name in self.slots(SlotState.LOADING) if name in self.processes]

    def loads_to_its_end(self, name):
        share = 0.6 + 0.6 * self.chance.random()  # of what was reserved
        self.processes[name] = replace(
            self.processes[name], measured_bytes=int(share * self.processes[name].reserved_bytes), load_s=1.0
        )
        self.enter_loaded(name)

    def enter_loaded(self, name):
        """What ``Loader.finish`` does with the answer of a session: one that took too much ends where nothing may go for it."""
        entry, slot, found = self.book.records[name], self.ledger.slots[name], self.processes[name]
        measured = found.measured_bytes + GROWTH_BYTES
        self.sizes.remember(found.digest, found.request, self.ledger.devices[slot.device_id].kind, measured)
        self.ledger.settle(name, measured, found.load_s, CLOCK.now_s)
        if self.book.lacks_pin(entry):
            self.ledger.mark(name, is_pinned=True)
        if self.ledger.excess_bytes(slot.device_id) > 0:
            del self.processes[name]
            self.loader.fail(entry, errors.ResourceExhaustedError(f"{entry.key.model} took too much"))
        else:
            entry.ready.set()
            self.book.notify()
            self.tell(entry)
        self.drive()

    def hears(self, name):
        """Return an actor's handle: its process remembers what it is told, without Ray."""

        async def remember(retention):
            self.processes[name] = replace(self.processes[name], retention=retention)

        return SimpleNamespace(set_retention=SimpleNamespace(remote=remember))

    def tell(self, entry):
        """What ``Leases.tell`` says to a session that is ready, and a session remembers."""
        if entry.is_usable:
            self.processes[entry.name] = replace(self.processes[entry.name], retention=self.leases.retention_of(entry))

    @precondition(lambda self: self.loads())
    @rule(data=st.data())
    def load_fails(self, data):
        """What ``end_session`` does while it waits for the end of the process."""
        name = self.draw(data, self.loads())
        self.ledger.mark(name, state=SlotState.RETIRING)

    def tries_again(self, entry):
        """After the end of a process that was to load: another try, unless this was the last one, or an earlier life's."""
        self.ledger.release(entry.name)
        self.book.rename(entry)
        if entry.is_adopted or self.chance.random() < 0.3:
            error = errors.ModelLoadError(f"{entry.key.model} cannot be loaded")
            self.loader.failures[entry.key] = loading.Failure(error, CLOCK.now_s + loading.FAILING_FOR_S)
            self.loader.fail(entry, error)
            self.drive()
            assert all(
                waiter.task.done() for waiter in self.waiters if key_of(waiter.want.request) == entry.key
            )  # told at once

    @precondition(lambda self: self.slots(SlotState.READY))
    @rule(data=st.data())
    def hot_model_gets_a_replica(self, data):
        entry = self.book.records[self.draw(data, self.slots(SlotState.READY))]
        others = self.book.of_key(entry.key)
        if all(other.ready.is_set() for other in others):
            twin = session_table.SessionRecord(
                entry.load_request, avoid=frozenset(slot.device_id for slot in self.ledger.of_key(entry.key))
            )
            found = plan(self.ledger, self.loader.need_of(twin))
            if found is not None and not found.victims:
                assert self.drive(self.evictor.try_place([twin]))
                self.begin(twin)

    # What keeps sessions, and ends them

    @precondition(lambda self: self.slots(SlotState.READY))
    @rule(data=st.data(), what=st.sampled_from(("use", "use", "pin", "unpin", "die")))
    def happens(self, data, what):
        name = self.draw(data, self.slots(SlotState.READY))
        entry = self.book.records[name]
        if what == "use":
            self.ledger.use(name, CLOCK.now_s, self.ledger.slots[name].uses + 1)
        elif what == "die":
            del self.processes[name]
            self.dies(entry)
        else:
            same = [other for other in self.book.of_key(entry.key) if other.is_placed and not other.is_retiring]
            self.book.pinned = self.book.pinned | {entry.key} if what == "pin" else self.book.pinned - {entry.key}
            for other in same:
                self.ledger.mark(other.name, is_pinned=what == "pin")
                self.tell(other)

    def dies(self, entry):
        """What ``Maintenance.watch`` does."""
        self.book.drop(entry)
        for heir in self.book.of_key(entry.key):
            self.tell(heir)
        self.drive()

    @precondition(lambda self: len(self.kept) < 2)
    @rule(numbers=st.sets(NUMBERS, min_size=1, max_size=3))
    def lease(self, numbers):
        """Take the models of a chain where nobody has to go for them: what tells sessions that are ready needs Ray."""
        models = [MODELS[number] for number in sorted(numbers)]
        self.count += 1
        request = LeaseRequest(
            f"lease {self.count}", tuple(LoadRequest(model, model.model, 100 * MB) for model in models)
        )
        entries = [entry for model in models for entry in self.book.of_key(key_of(model))]
        of_ledger = {
            key: [slot for slot in self.ledger.of_key(key) if slot.state is not SlotState.RETIRING]
            for key in map(key_of, models)
        }
        waiting = {entry.key: entry for entry in self.unplaced()}
        needs = [
            self.loader.need_of(waiting.get(key_of(want.request), session_table.SessionRecord(want)))
            for want in request.load_requests
            if not of_ledger[key_of(want.request)]
        ]
        trial = self.ledger.copy()
        trial.lease(of_ledger)
        plans = plan_all(trial, needs)
        if any(
            (found := self.ledger.of_key(key_of(model))) and all(slot.state is SlotState.RETIRING for slot in found)
            for model in models
        ):
            with pytest.raises(errors.GenAIRayError):
                self.drive(self.leases.take(request, -1.0))
            assert entries == [entry for model in models for entry in self.book.of_key(key_of(model))]
            return
        if any(entry.is_usable for entry in entries) or plans is None or any(found.victims for found in plans):
            return
        self.drive(self.leases.take(request, 1.0))
        self.kept[request.lease_id] = request
        assert self.leases.renew(request)
        assert all(self.ledger.is_leased(key_of(model)) for model in models)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def release(self, data):
        lease_id = self.draw(data, sorted(self.kept))
        keys = [key_of(want.request) for want in self.kept[lease_id].load_requests]
        if not any(entry.is_usable for key in keys for entry in self.book.of_key(key)):
            self.drive(self.leases.release(lease_id))
            del self.kept[lease_id]

    # The cluster, and the cache itself

    @rule(kind=st.integers(0, 2), budget=st.integers(150, 800), unit=st.sampled_from((1, 100_000)))
    def node_comes(self, kind, budget, unit):
        """A node of memory only, or with one GPU or two; of the same name with another budget where one was before."""
        name = next((f"node{number}" for number in range(4) if f"node{number}" not in self.nodes), None)
        if name is not None:
            self.nodes[name] = [
                (CPU, CPU, budget * MB, 1),
                *((f"gpu{number}", LOGICAL_GPU, budget * MB, unit) for number in range(kind)),
            ]
            self.enter(name)

    def enter(self, name):
        for word, kind, budget, unit in self.nodes[name]:
            self.ledger.add_device(Device(f"{name}/{word}", name, kind, int(0.95 * budget), budget, unit))
        self.book.notify()
        self.drive()

    @precondition(lambda self: len(self.nodes) > 2)
    @rule(data=st.data())
    def node_dies(self, data):
        """What ``Maintenance.look_at_nodes`` does; a load on it is told by its own call, and tries elsewhere."""
        name = self.draw(data, sorted(self.nodes)[1:])  # the first one has the cache
        del self.nodes[name]
        gone = [device_id for device_id in self.ledger.devices if device_id.startswith(f"{name}/")]
        on_it = self.entries(lambda entry: entry.is_placed and self.ledger.slots[entry.name].device_id in gone)
        for entry in on_it:
            self.processes.pop(entry.name, None)
            if entry.ready.is_set():
                self.dies(entry)
        for device_id in gone:
            self.ledger.remove_device(device_id)
        for entry in [entry for entry in on_it if not entry.ready.is_set()]:
            self.tries_again(entry)
        self.drive()

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def cache_starts_again(self, data):
        """The sessions say what they are, in any order; clients ask again for what they waited for, and holders tell of their leases."""
        for name in self.slots(SlotState.RETIRING):
            if not self.processes[name].retired:  # killed, since it did not load
                del self.processes[name]
        old = {name: copy.copy(slot) for name, slot in self.ledger.slots.items()}
        old_book, waiters = self.book, self.waiters
        for waiter in waiters:
            waiter.task.cancel()
        self.drive()
        self.waiters = []
        self.open()
        for name in self.nodes:
            self.enter(name)
        for name in data.draw(st.permutations(sorted(self.processes))):
            entry = actor.enter(name, self.processes[name], self.book, self.leases)
            assert entry is not None, f"no place for {name}, which was there"
            entry.handle = self.hears(name)
        assert set(self.ledger.slots) == set(self.processes)
        for name, found in list(self.processes.items()):
            slot, was = self.ledger.slots[name], old[name]
            assert (slot.key, slot.device_id, slot.held_bytes, slot.floor_bytes) == (
                was.key,
                was.device_id,
                was.held_bytes,
                was.floor_bytes,
            )
            if found.retired:
                self.doomed.add(name)
                assert slot.state is SlotState.RETIRING
                assert (found.measured_bytes or 0) <= slot.reserved_bytes <= was.reserved_bytes
                continue
            assert slot.state is SlotState.LOADING  # until its answer to ``load`` is there, at once where it has loaded
            if found.measured_bytes is not None:
                self.enter_loaded(name)
                assert slot.is_pinned == was.is_pinned
                assert self.ledger.is_leased(slot.key) >= any(
                    slot.key in map(key_of, (w.request for w in r.load_requests)) for r in self.kept.values()
                )
            assert (slot.state, slot.reserved_bytes) == (was.state, was.reserved_bytes)
        ready = {
            key_of(found.request)
            for found in self.processes.values()
            if found.measured_bytes is not None and not found.retired
        }
        assert self.book.pinned == old_book.pinned & ready
        self.kept = {lease_id: request for lease_id, request in self.kept.items() if self.leases.renew(request)}
        for waiter in waiters:
            if waiter.until_s > CLOCK.now_s:
                self.wait(waiter.want, waiter.until_s)
        self.drive()

    # What holds at every instant

    @invariant()
    def never_over_budget(self):
        for device in self.ledger.devices.values():
            slots = [slot for slot in self.ledger.slots.values() if slot.device_id == device.device_id]
            assert device.used_bytes == sum(slot.reserved_bytes for slot in slots) <= device.budget_bytes
            assert device.held_bytes == sum(slot.held_bytes for slot in slots) <= device.capacity_bytes
        assert (
            self.ledger.used_bytes
            == sum(slot.reserved_bytes for slot in self.ledger.slots.values())
            <= self.ledger.budget_bytes
        )

    @invariant()
    def one_load_a_device_and_entry(self):
        for key in map(key_of, MODELS):
            pending = [entry for entry in self.book.of_key(key) if not entry.ready.is_set()]
            assert len(pending) <= 1
            places = [slot.device_id for slot in self.ledger.of_key(key) if slot.state is not SlotState.RETIRING]
            assert len(places) == len(set(places))

    @invariant()
    def what_is_pinned_stays(self):
        for key in self.book.pinned:
            assert any(slot.is_pinned for slot in self.ledger.of_key(key)) or not any(
                entry.is_usable for entry in self.book.of_key(key)
            )

    @invariant()
    def everybody_ends_by_the_deadline(self):
        for waiter in list(self.waiters):
            if waiter.task.done():
                error = waiter.task.exception()
                assert isinstance(error, errors.GenAIRayError | None), error
                assert error is not None or waiter.task.result()
                self.waiters.remove(waiter)
            else:
                assert CLOCK.now_s < waiter.until_s


@pytest.fixture
def own_clock(monkeypatch):
    for module in (actor, session_table, eviction, leases, loading):
        monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(session_table, "uuid", CLOCK)


def run(max_examples, steps):
    patience = settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(CacheMachine, settings=patience)


def test_no_history_of_requests_breaks_an_invariant(own_clock):
    run(100, 50)


@pytest.mark.slow
@pytest.mark.longest  # a hundred shorter histories run every time
def test_no_long_history_of_requests_breaks_an_invariant(own_clock):
    run(1000, 80)


def books_of(replicas, **changes):
    """Books with ready sessions of one model, each on a device of its own, and one more device."""
    several, entries = session_table.SessionTable(Ledger(None), NoProcesses()), []
    for number in range(replicas + 1):
        several.ledger.add_device(Device(f"n{number}/{CPU}", f"n{number}", CPU, 1000, 1000))
    for number in range(replicas):
        entry = session_table.SessionRecord(LoadRequest(replace(MODELS[0], **changes)))
        several.ledger.reserve(entry, Need(entry.key, 500), f"n{number}/{CPU}", 0.0)
        several.ledger.settle(entry.name, 500, 1.0, 0.0)
        several.add(entry)
        entry.ready.set()
        entries.append(entry)
    return several, entries


def test_the_pin_of_a_session_that_dies_passes_to_its_replica():
    several, (pinned, other) = books_of(2)
    several.pinned = {pinned.key}
    several.ledger.mark(pinned.name, is_pinned=True)
    assert [slot.name for slot in several.ledger.evictable()] == [other.name]
    several.drop(pinned)
    assert list(several.ledger.evictable()) == []


def test_a_session_on_its_way_out_hears_of_a_lease_since_it_may_refuse_to_go():
    several, (leaving, other) = books_of(2)
    several.ledger.mark(leaving.name, state=SlotState.RETIRING)
    told, stays = [], leases.Leases(several, None, None, None)
    for entry in (leaving, other):

        async def hear(retention, name=entry.name):
            told.append((name, retention.leases))

        entry.handle = SimpleNamespace(set_retention=SimpleNamespace(remote=hear))
    stays.adopt("lease 1", leaving.load_request)
    for entry in (leaving, other):
        asyncio.run(stays.tell(entry))
    assert told == [(leaving.name, ("lease 1",)), (other.name, ("lease 1",))]


def test_the_pin_passes_to_a_replica_that_refuses_to_leave_meanwhile():
    several, (pinned, other) = books_of(2)
    several.pinned = {pinned.key}
    several.ledger.mark(pinned.name, is_pinned=True)
    several.ledger.mark(other.name, state=SlotState.RETIRING)
    several.drop(pinned)
    several.revive(other)
    assert list(several.ledger.evictable()) == []


def test_the_pin_of_a_session_that_is_found_too_late_passes_to_the_one_in_its_place():
    several, (other,) = books_of(1)
    started = Started("n0", None, 1, 0)
    found = Description(
        "cache",
        MODELS[0],
        "",
        started,
        400,
        400,
        400,
        1.0,
        RetentionInfo(is_pinned=True, leases=("lease:1",)),
        retired=False,
    )
    stays = leases.Leases(several, None, None, None)
    late = actor.enter("late", found, several, stays)
    assert late.key == other.key
    assert (late.is_retiring, len(stays)) == (True, 1)
    assert several.ledger.slots[other.name].is_pinned
    assert not several.ledger.slots["late"].is_pinned


def test_a_replica_does_not_bring_back_the_bound_that_its_model_was_loaded_with():
    several, entries = books_of(1, max_replicas=2)
    several.limit_replicas(replace(MODELS[0], max_replicas=3))
    twin = session_table.SessionRecord(entries[0].load_request)
    several.add(twin)
    assert several.may_replicate(twin.key)
    several.limit_replicas(MODELS[0])  # who says nothing changes nothing
    several.add(session_table.SessionRecord(twin.load_request))
    assert not several.may_replicate(twin.key)


def test_nothing_is_loaded_for_somebody_whose_time_is_over():
    several, _ = books_of(0)
    begun, loader = [], loading.Loader(several, 300.0, None, None)
    with pytest.raises(errors.DeadlineExceededError, match="model-0 was not ready in time"):
        asyncio.run(loader.join(LoadRequest(MODELS[0]), 0.0, begun.append))
    assert begun == []


def test_a_replica_that_failed_is_not_made_again_on_its_device_for_a_while(tmp_path, own_clock, monkeypatch):
    monkeypatch.setattr(maintenance, "time", CLOCK)
    CLOCK.begin()
    several, (first,) = books_of(1)
    sizes, begun = SizeMemory(tmp_path / "sizes.json"), []
    sizes.remember("", MODELS[0], CPU, 400)
    loader = loading.Loader(several, 300.0, sizes, CacheMetrics("no cache"))
    evictor = eviction.Evictor(several, loader.need_of, 0.0, lambda slot: None)
    keeper = maintenance.Maintenance(
        several,
        evictor,
        loader,
        leases.Leases(several, evictor, loader.need_of, begun.append),
        begun.append,
        CacheOptions(),
    )
    several.is_surveyed = True

    async def fail():
        await keeper.replicate(first)
        for twin in begun:
            several.add(twin)
            several.is_closed = True  # which is one way to fail
            await loader.load(twin, evictor)
            several.is_closed = False
        began = len(begun)
        begun.clear()
        return began

    for until_s in (0.0, loading.FAILING_FOR_S + 1):
        CLOCK.now_s = until_s
        assert [asyncio.run(fail()) for _ in range(3)] == [1, 0, 0]
        assert loader.failing() == {}
        assert [entry.name for entry in several.records.values()] == [first.name]


class Making(eviction.Evictor):
    """Retires sessions when it is let, without Ray."""

    def __init__(self, several):
        super().__init__(several, lambda entry: Need(entry.key, entry.load_request.predicted_bytes), 0.0, None)
        self.going, self.may_go = [], asyncio.Event()

    async def ask(self, name):
        return None

    async def retire(self, name, finish_within_s=None):
        self.going.append(name)
        await self.may_go.wait()
        self._table.drop(self._table.records[name])
        return True


def books_on_one_device(*sizes):
    """Books with sessions of these bytes on one device of 1000, stalest first."""
    several, entries = session_table.SessionTable(Ledger(None), NoProcesses()), []
    several.ledger.add_device(Device(f"n/{CPU}", "n", CPU, 1000, 1000))
    for number, size in enumerate(sizes):
        entry = session_table.SessionRecord(LoadRequest(MODELS[number], predicted_bytes=size))
        several.ledger.reserve(entry, Need(entry.key, size), f"n/{CPU}", 0.0)
        several.ledger.settle(entry.name, size, 1.0, 0.0)
        several.ledger.use(entry.name, float(number), 1)
        several.add(entry)
        entry.ready.set()
        entries.append(entry)
    return several, entries


async def begun(work):
    """Start something, and return when it waits."""
    task = asyncio.create_task(work)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return task


def test_room_that_one_load_makes_is_taken_by_nobody_else_and_nobody_waits_for_it():
    several, (first, second) = books_on_one_device(400, 300)
    large, medium, small = (
        session_table.SessionRecord(LoadRequest(MODELS[number], predicted_bytes=size))
        for number, size in ((2, 600), (3, 200), (4, 100))
    )

    async def history():
        evictor = Making(several)
        loads = [await begun(evictor.try_place([entry])) for entry in (large, medium)]
        assert evictor.going == [first.name, second.name]  # of the 300 bytes that are free the large one counts on 200
        assert await evictor.try_place([small])
        assert not any(load.done() for load in loads)
        evictor.may_go.set()
        assert await asyncio.gather(*loads) == [True, True]

    asyncio.run(history())
    assert set(several.ledger.slots) == {large.name, medium.name, small.name}
    assert several.ledger.used_bytes == 900


def test_a_session_that_grows_takes_no_room_of_a_load_and_none_takes_its():
    several, (first, growing) = books_on_one_device(400, 300)
    several.ledger.mark(growing.name, is_pinned=True)
    large, small, tiny = (
        session_table.SessionRecord(LoadRequest(MODELS[number], predicted_bytes=size))
        for number, size in ((2, 600), (3, 100), (4, 50))
    )

    async def history():
        evictor = Making(several)
        load = await begun(evictor.try_place([large]))
        assert not await evictor.grow(growing.name, 500)  # of the 300 bytes that are free the load counts on 200
        load.cancel()
        await asyncio.wait([load])
        growth = await begun(evictor.grow(growing.name, 950))
        assert evictor.going == [first.name, first.name]
        assert not await evictor.try_place([small])  # it counts on 250 of the 300
        assert await evictor.try_place([tiny])
        evictor.may_go.set()
        assert await growth

    asyncio.run(history())
    assert {name: slot.reserved_bytes for name, slot in several.ledger.slots.items()} == {
        growing.name: 950,
        tiny.name: 50,
    }


def test_a_session_that_took_too_much_waits_for_what_goes_already():
    several, (first, heavy) = books_on_one_device(400, 300)
    large = session_table.SessionRecord(LoadRequest(MODELS[2], predicted_bytes=350))

    async def history():
        evictor = Making(several)
        load = await begun(evictor.try_place([large]))
        several.ledger.grow(heavy.name, 700)
        shrinking = await begun(evictor.shrink(heavy.name))
        assert evictor.going == [first.name]
        evictor.may_go.set()
        assert await asyncio.gather(load, shrinking) == [False, True]

    asyncio.run(history())
    assert set(several.ledger.slots) == {heavy.name}


def test_no_room_is_taken_for_what_was_given_up_while_it_was_made():
    several, (first,) = books_on_one_device(800)
    waited = session_table.SessionRecord(LoadRequest(MODELS[1], predicted_bytes=600))
    several.add(waited)

    async def history():
        evictor = Making(several)
        load = await begun(evictor.try_place([waited]))
        several.drop(waited)  # as a lease does when its time is over, and another one looks for room for the same
        evictor.may_go.set()
        assert not await load

    asyncio.run(history())
    assert several.ledger.slots == {}
    assert first.gone.is_set()
