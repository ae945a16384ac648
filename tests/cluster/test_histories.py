"""What a cache decides under any order of events, without Ray: one load for many waiters, ends by deadlines, restarts.

The code is the cache's own, from ``CacheActor`` down. The machine plays what lies beyond it, the processes of sessions
(``SessionProcesses`` and the calls of their handles): they start, load, refuse, close for another session, end and die
when it says so, on its own clock.
"""

import asyncio
import copy
import itertools
import uuid
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ray.exceptions import RayActorError

from genai_ray import errors
from genai_ray.cluster.cache import CacheOptions, actor, eviction, leases, loading, maintenance, session_table, spares
from genai_ray.cluster.cache.measured_sizes import SizeMemory
from genai_ray.cluster.cache.metrics import CacheMetrics
from genai_ray.cluster.devices import CPU, LOGICAL_GPU, MEMORY_UNIT_BYTES, Started
from genai_ray.cluster.messages import (
    Description,
    LeaseRequest,
    LoadRequest,
    Recency,
    RetentionInfo,
    SessionRequest,
    key_of,
)
from genai_ray.cluster.placement import Device, EvictionPolicy, Ledger, Need, SlotState
from genai_ray.cluster.served import GROWTH_BYTES
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
TURNS = 40
"""Turns of the event loop after which nothing happens any more before the clock moves."""


TAKEOVER = ("try_retire", "close", "reopen", "load")
"""The steps by which a session leaves its process to another one."""

EVICTION = ("drain", *TAKEOVER)
"""These, and that of a session whose process ends."""


class NoProcesses:
    """The processes of sessions that have none."""

    async def start(self, record, device, free):
        await asyncio.Event().wait()

    def kill(self, record):
        pass

    async def kill_and_wait(self, record):
        pass

    async def process_ids(self, node):
        await asyncio.Event().wait()


class Clock:
    """Takes the place of ``time``, ``uuid`` and the event loop's clock: a history is the same each time."""

    def __init__(self):
        self.history = 0
        self.begin()

    def begin(self):
        self.history += 1
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
    load_request: LoadRequest
    until_s: float


@dataclass
class Call:
    """A question to a process, or an order, of which the answer is to come."""

    name: str
    what: str
    answer: asyncio.Future
    args: tuple


class Handle:
    """A process as a cache calls it."""

    def __init__(self, processes, pid):
        self._processes, self.pid = processes, pid

    def __getattr__(self, what):
        return SimpleNamespace(remote=lambda *args: self._processes.ask(self.pid, what, *args))


class Processes:
    """The processes of sessions, without Ray: those alive, by what each serves, and what they have not answered."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.alive, self.killed, self.closed, self.calls, self.count = {}, set(), {}, [], 0
        self.idle, self.violations = {}, []

    def expect(self, is_so, what):
        """Note what must not be; an exception would only be taken by the cache for that of a process."""
        if not is_so:
            self.violations.append(what)

    def pending(self, *what):
        """What has not been answered; an answer that nobody waits for any more is forgotten."""
        self.calls = [call for call in self.calls if not call.answer.done()]
        return [call for call in self.calls if call.what in what]

    def later(self, name, what, *args):
        answer = asyncio.get_running_loop().create_future()
        self.calls.append(Call(name, what, answer, args))
        return answer

    async def start(self, record, device, free):
        self.expect(free[device] >= record.held_bytes, f"Ray has {free[device]} for {record.held_bytes}")
        self.expect(record.held_bytes >= record.reserved_bytes, f"{record.name} is reserved more than Ray holds")
        node, _, word = device.device_id.partition("/")
        pid = self.idle.pop(node, None)
        if pid is None:
            self.count += 1
            pid = self.count
        started = Started(node, None if word == CPU else word.removeprefix("gpu"), pid, PROCESS_BYTES)
        record.handle = Handle(self, pid)
        if node not in self.nodes:  # it died, and the cache has not heard of it
            raise RayActorError
        asked = record.load_request
        self.alive[record.name] = Description(
            "cache",
            record.name,
            asked.request,
            asked.digest,
            started,
            record.reserved_bytes,
            record.held_bytes,
            None,
            0.0,
            RetentionInfo(),
            retired=False,
        )
        await self.later(record.name, "start")
        return started

    async def process_ids(self, node):
        if node not in self.nodes:
            raise ConnectionError
        busy = {found.started.pid for found in self.alive.values() if found.started.node == node}
        return frozenset(busy | {self.idle[node]} if node in self.idle else busy)

    async def start_spare(self, node):
        if node not in self.nodes:
            raise ConnectionError
        self.expect(node not in self.idle, f"a second spare process on {node}")
        self.count += 1
        self.idle[node] = self.count

    def kill(self, record):
        if record.handle is not None:
            self.die(self.served_by(record.handle.pid))

    async def kill_and_wait(self, record):
        name = record.handle and self.served_by(record.handle.pid)
        if name is not None:
            self.killed.add(name)
            await self.later(name, "end")

    def served_by(self, pid):
        """The session that a process serves; None if it is dead."""
        return next((name for name, found in self.alive.items() if found.started.pid == pid), None)

    def reopen(self, old, name, load_request, reserved_bytes, inherited_bytes):
        """A process becomes that of another session."""
        kept = max(self.closed.pop(old) - PROCESS_BYTES, 0)
        self.expect(inherited_bytes == kept, f"{name}: {inherited_bytes} instead of {kept} bytes were kept")
        held = self.alive[old].held_bytes
        self.expect(held >= reserved_bytes, f"{name} is reserved more than the {held} that Ray holds")
        for call in self.pending("watch"):
            if call.name == old:
                call.answer.set_result(False)
        self.alive[name] = replace(
            self.alive.pop(old),
            name=name,
            request=load_request.request,
            digest=load_request.digest,
            reserved_bytes=reserved_bytes,
            measured_bytes=None,
            load_s=0.0,
            retention=RetentionInfo(),
            retired=False,
            predecessor=old,
            inherited_bytes=inherited_bytes,
        )

    def die(self, name):
        if self.alive.pop(name, None) is not None:
            self.closed.pop(name, None)
            for call in self.pending("start", *EVICTION, "watch", "end"):
                if call.name == name and call.what == "end":
                    call.answer.set_result(None)
                elif call.name == name:
                    call.answer.set_exception(RayActorError())

    def change(self, name, **changes):
        self.alive[name] = replace(self.alive[name], **changes)

    def ask(self, pid, what, *args):
        """What a session answers at once; the rest is left to the machine."""
        answer = asyncio.get_running_loop().create_future()
        name = self.served_by(pid)
        found = self.alive.get(name)
        if found is None or name in self.killed:
            answer.set_exception(RayActorError())
            answer.exception()
            return answer
        if what == "reopen":
            self.expect(name in self.closed, f"{args[0]} in the process of {name}, which is not closed")
            return self.later(name, what, *args)
        self.expect(what in ("recency", "describe", "load") or args[0] == name, f"{what} of {args[:1]} to {name}")
        self.expect(what != "load" or name not in self.closed, f"load of {name}, which is closed")
        if what == "recency":
            answer.set_result(
                Recency(CLOCK.now_s - USED.get(name, (0.0, 0))[0], USED.get(name, (0.0, 0))[1], 0, False, 0)
            )
        elif what == "set_retention":
            self.change(name, retention=args[1])
            answer.set_result(None)
        elif what == "revive":
            self.change(name, retired=False)
            answer.set_result(None)
        elif what == "load" and found.measured_bytes is not None:
            answer.set_result((found.measured_bytes, found.load_s))
        else:
            return self.later(name, what)
        return answer


PROCESS_BYTES = 80 * MB
"""What a new process takes."""

USED = {}
"""When each session was last used, and how often."""


class CacheMachine(RuleBasedStateMachine):
    """Asks, loads, uses, pins, leases, evicts and kills, while nodes come and go and the cache itself starts again."""

    @initialize(
        total=st.none() | st.integers(300, 1200),
        policy=st.sampled_from(EvictionPolicy),
        chance=st.randoms(use_true_random=True),
        is_full=st.booleans(),
        min_stay_s=st.sampled_from((0.0, 3.0)),
        spare=st.sampled_from((0, 60)),
    )
    def begin_history(self, total, policy, chance, is_full=False, min_stay_s=0.0, spare=0):
        self.chance, self.spare = chance, spare * MB
        self.min_stay_s = min_stay_s
        CLOCK.begin()
        USED.clear()
        self.loop = Loop()
        self.total, self.policy = total and total * MB, policy
        self.nodes = {}
        self.processes = Processes(self.nodes)
        self.waiters, self.others, self.kept, self.count = [], [], {}, 0
        self.open()
        self.node_comes(0, 600, 1, share=0.85 if is_full else 0.95)
        for number in (0, 1, 3) if is_full else ():  # so that the next one has others evicted
            self.ask(number, count=1, within_s=20.0, predicted=150, is_explicit=False)
            self.work_is_done(40)

    def open(self):
        options = CacheOptions(policy=self.policy, min_stay_s=self.min_stay_s)
        self.cache = actor.CacheActor("cache", self.total, options, self.processes)
        self.book, self.leases = self.cache._table, self.cache._leases
        self.ledger = self.book.ledger
        self.book.is_surveyed = True
        self.cache._opening = self.loop.create_task(asyncio.sleep(0))
        self.drive()

    def teardown(self):
        if hasattr(self, "loop"):
            self.time_passes(max((waiter.until_s - CLOCK.now_s for waiter in self.waiters), default=0.0) + 0.2)
            assert not self.waiters
            self.end_tasks()
            self.loop.close()

    def end_tasks(self):
        """Stop the process of the cache, which ends no session."""
        self.book.processes = NoProcesses()
        while tasks := asyncio.all_tasks(self.loop):  # ``wait_for`` may swallow that once
            for task in sorted(tasks, key=lambda task: int(task.get_name().split("-")[1])):  # oldest first
                task.cancel()
            self.drive()

    def drive(self, work=None):
        """Run what is ready, and return what the work returns."""

        async def turn():
            result = None if work is None else await work
            for _ in range(TURNS):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(turn())

    def records(self, *states):
        return [record for record in self.ledger.slots.values() if record.state in states]

    def draw(self, data, values):
        return data.draw(st.sampled_from(list(values)))

    # Requests

    @rule(
        number=NUMBERS,
        count=st.integers(1, 4),
        within_s=st.floats(0.1, 20),
        predicted=st.sampled_from((140, 150, 155)) | st.integers(100, 500),
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
        new = [record for record in self.book.of_key(key) if record not in before]
        assert len(new) <= (0 if before else 1)

    def wait(self, load_request, until_s):
        load_request = replace(load_request, within_s=until_s - CLOCK.now_s)
        self.waiters.append(Waiter(self.loop.create_task(self.cache.acquire(load_request)), load_request, until_s))

    @rule(seconds=st.floats(0.05, 8))
    def time_passes(self, seconds):
        end_s = CLOCK.now_s + seconds
        while CLOCK.now_s < end_s:
            CLOCK.now_s = min(CLOCK.now_s + 0.5, end_s)
            self.drive()
            self.everybody_ends_by_the_deadline()

    # Loads

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
    def time_does_its_work(self, choices):
        """Processes go on, each by a step: one has started, loaded, agreed to retire, computed, closed or ended."""
        for number in choices:
            calls = self.processes.pending("start", *EVICTION, "end")
            if calls:
                self.goes_on(calls[number % len(calls)])
                self.never_over_budget()

    @rule(most=st.integers(1, 40))
    def work_is_done(self, most):
        """All processes go on, in the order in which they were asked."""
        for _ in range(most):
            calls = self.processes.pending("start", *EVICTION, "end")
            if not calls:
                break
            self.goes_on(calls[0])
            self.never_over_budget()

    def goes_on(self, call):
        result = None
        if call.what == "load":
            found = self.processes.alive[call.name]
            measured = int((0.6 + 0.6 * self.chance.random()) * found.reserved_bytes)
            self.processes.change(call.name, measured_bytes=measured, load_s=1.0)
            result = measured, 1.0
        elif call.what == "try_retire":
            record = self.book.records[call.name]
            assert not record.is_pinned
            assert record.is_retiring
            self.processes.change(call.name, retired=True)
            result = True
        elif call.what == "close":
            assert self.book.records[call.name].is_retiring
            kept = int((80 + 20 * self.chance.random()) * MB)
            self.processes.change(call.name, measured_bytes=kept)
            self.processes.closed[call.name] = kept
            result = kept if kept < 96 * MB else None  # too much
        elif call.what == "reopen" and call.name in self.processes.closed:  # else it was noted
            self.processes.reopen(call.name, *call.args)
        if call.what == "end":
            self.processes.die(call.name)
        else:
            call.answer.set_result(result)
        self.drive()

    def waiting_for(self, key):
        return [
            waiter for waiter in self.waiters if key_of(waiter.load_request.request) == key and not waiter.task.done()
        ]

    @precondition(lambda self: self.processes.pending("try_retire"))
    @rule(data=st.data())
    def refuses_to_retire(self, data):
        call = self.draw(data, self.processes.pending("try_retire"))
        key = self.book.records[call.name].key
        call.answer.set_result(False)
        self.drive()
        assert not self.waiting_for(key) or any(
            not other.ready.is_set() for other in self.book.of_key(key)
        )  # sent back at once, but for those of a replica

    @precondition(lambda self: self.processes.pending("try_retire", "drain", "close", "reopen"))
    @rule(data=st.data())
    def dies_while_it_is_evicted(self, data):
        call = self.draw(data, self.processes.pending("try_retire", "drain", "close", "reopen"))
        self.processes.die(call.name)
        self.drive()

    @precondition(lambda self: self.processes.pending("load"))
    @rule(data=st.data(), dies=st.booleans())
    def load_fails(self, data, dies):
        call = self.draw(data, self.processes.pending("load"))
        key = self.book.records[call.name].key
        if dies:
            self.processes.die(call.name)
        else:
            call.answer.set_exception(errors.ModelLoadError(f"{key.model} cannot be loaded"))
        self.drive()
        assert not self.waiting_for(key) or any(
            not other.ready.is_set() for other in self.book.of_key(key)
        )  # told at once, if it was the last try

    @precondition(lambda self: self.processes.pending("watch"))
    @rule(data=st.data())
    def hot_model_gets_a_replica(self, data):
        call = self.draw(data, self.processes.pending("watch"))
        key = self.book.records[call.name].key if call.name in self.book.records else None
        before = [] if key is None else self.book.of_key(key)
        call.answer.set_result(True)
        self.drive()
        if key is not None and not all(record.ready.is_set() for record in before):
            assert len(self.book.of_key(key)) <= len(before)  # not beside one that loads

    @rule()
    def models_of_leases_spread(self):
        self.spawn(self.cache._maintenance.spread())

    @rule()
    def idle_replicas_retire(self):
        self.spawn(self.cache._maintenance._ask(None, None))

    @rule()
    def spare_processes_are_looked_at(self):
        self.spawn(self.cache._maintenance.spares.look())

    @precondition(lambda self: self.processes.idle)
    @rule(data=st.data())
    def a_spare_process_dies(self, data):
        del self.processes.idle[self.draw(data, sorted(self.processes.idle))]

    def spawn(self, work):
        self.others.append(self.loop.create_task(work))
        self.drive()

    # What keeps sessions, and ends them

    @precondition(lambda self: list(self.ledger.evictable()))
    @rule(data=st.data())
    def somebody_evicts(self, data):
        record = self.draw(data, self.ledger.evictable())
        self.spawn(self.cache.evict(record.key.model, 3.0))

    @precondition(lambda self: self.records(SlotState.READY))
    @rule(data=st.data(), what=st.sampled_from(("use", "use", "pin", "unpin", "die")))
    def happens(self, data, what):
        record = self.draw(data, self.records(SlotState.READY))
        if what == "use":
            USED[record.name] = CLOCK.now_s, USED.get(record.name, (0.0, 0))[1] + 1
        elif what == "die":
            self.processes.die(record.name)
            self.drive()
        else:
            self.drive(self.cache.pin(record.key.model, what == "pin"))

    @precondition(lambda self: len(self.kept) < 2)
    @rule(numbers=st.sets(NUMBERS, min_size=1, max_size=3), replicas=st.sampled_from((1, 1, 2, None)))
    def lease(self, numbers, replicas):
        """Take the models of a chain; its holder waits for it beside everything else."""
        self.count += 1
        models = [MODELS[number] for number in sorted(numbers)]
        asked = tuple(LoadRequest(model, model.model, 100 * MB) for model in models)
        request = LeaseRequest(f"lease {self.count}", asked, replicas)
        self.kept[request.lease_id] = request

        async def hold():
            try:
                await self.cache.lease(request, 2.0)
            except errors.GenAIRayError:
                del self.kept[request.lease_id]
            else:
                assert await self.leases.renew(request)
                assert all(self.ledger.is_leased(key_of(model)) for model in models)

        self.spawn(hold())

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def release(self, data):
        request = self.kept[self.draw(data, sorted(self.kept))]
        if self.drive(self.leases.renew(request)):
            self.drive(self.cache.release(request.lease_id))
            del self.kept[request.lease_id]

    # The cluster, and the cache itself

    @rule(
        kind=st.integers(0, 2),
        budget=st.integers(150, 800),
        unit=st.sampled_from((1, 100_000)),
        step=st.sampled_from((1, MEMORY_UNIT_BYTES)),
        share=st.sampled_from((0.6, 0.9)),
    )
    def node_comes(self, kind, budget, unit, step=1, share=0.95):
        """A node of memory only, or with one GPU or two; of the same name with another budget where one was before."""
        name = next((f"node{number}" for number in range(4) if f"node{number}" not in self.nodes), None)
        if name is not None:
            self.nodes[name] = [
                (CPU, CPU, budget * MB, step, share),
                *((f"gpu{number}", LOGICAL_GPU, budget * MB, unit, 0.95) for number in range(kind)),
            ]
            self.enter(name)

    def enter(self, name):
        for word, kind, budget, unit, share in self.nodes[name]:
            capacity = budget // unit * unit
            spare = self.spare if kind == CPU else 0
            self.ledger.add_device(
                Device(f"{name}/{word}", name, kind, int(share * budget) - spare, capacity, unit, spare_bytes=spare)
            )
        self.book.notify()
        self.drive()

    @precondition(lambda self: len(self.nodes) > 2)
    @rule(data=st.data(), is_told_first=st.booleans())
    def node_dies(self, data, is_told_first):
        """Its processes die with it, before the cache hears of the node or afterwards."""
        node = self.draw(data, sorted(self.nodes)[1:])  # the first one has the cache
        del self.nodes[node]
        self.processes.idle.pop(node, None)
        on_it = [name for name, found in self.processes.alive.items() if found.started.node == node]

        async def hear():
            self.cache._maintenance._remove(node)

        if is_told_first:
            self.drive(hear())
        for name in on_it:
            self.processes.die(name)
        self.drive()
        if not is_told_first:
            self.drive(hear())

    @precondition(lambda self: self.processes.alive and not self.has_grown() and not self.is_over())
    @rule(data=st.data())
    def cache_starts_again(self, data):
        """The sessions say what they are, in any order; clients ask again, and holders tell of their leases."""
        old = {name: copy.copy(record) for name, record in self.ledger.slots.items()}
        old |= {record.predecessor: record for record in old.values() if record.predecessor in self.processes.closed}
        old_book, waiters = self.book, self.waiters
        held = {key for lease in self.leases._leases.values() for key in lease.keys}
        self.waiters, self.others = [], []
        kept, self.kept = dict(self.kept), {}
        self.end_tasks()
        for name in list(self.processes.killed):  # before
            self.processes.die(name)
        self.processes.calls.clear()
        self.processes.idle.clear()  # Ray keeps them no longer
        self.open()
        for name in self.nodes:
            self.enter(name)

        async def adopt(names):
            for name in names:
                found, was = self.processes.alive[name], old[name]
                is_there = self.cache.take_over(Handle(self.processes, found.started.pid), found)
                assert is_there, f"no place for {name}, which was there"
                slot = self.ledger.slots[name]
                assert (slot.device_id, slot.held_bytes) == (was.device_id, was.held_bytes)
                assert was.name != name or (slot.key, slot.floor_bytes) == (was.key, was.floor_bytes)
                assert (slot.predecessor, slot.inherited_bytes) == (found.predecessor, found.inherited_bytes)
                if found.retired:
                    assert slot.state is SlotState.RETIRING
                    assert (found.measured_bytes or 0) <= slot.reserved_bytes <= was.reserved_bytes
                else:  # until its answer to ``load`` is there, at once where it has loaded
                    assert slot.state is SlotState.LOADING

        self.drive(adopt(data.draw(st.permutations(sorted(self.processes.alive)))))
        assert set(self.ledger.slots) == set(self.processes.alive)
        for name, found in list(self.processes.alive.items()):
            slot, was = self.ledger.slots[name], old[name]
            if found.retired:
                continue
            if found.measured_bytes is not None:
                assert slot.is_pinned == was.is_pinned
                assert self.ledger.is_leased(slot.key) >= (slot.key in held)
                assert slot.state is SlotState.READY
            else:
                assert slot.state is was.state
            assert slot.reserved_bytes == was.reserved_bytes
        ready = {
            key_of(found.request)
            for found in self.processes.alive.values()
            if found.measured_bytes is not None and not found.retired
        }
        assert self.book.pinned == old_book.pinned & ready
        self.kept = {lease_id: request for lease_id, request in kept.items() if self.drive(self.leases.renew(request))}
        for waiter in waiters:
            if waiter.until_s > CLOCK.now_s:
                self.wait(waiter.load_request, waiter.until_s)
        self.drive()

    # What holds at every instant

    def is_over(self):
        """Whether the sessions take more than the budget: a node has come, and its spare process counts."""
        return self.ledger.used_bytes > self.ledger.budget_bytes

    def has_grown(self, device_id=None):
        """Whether a session, of one device or of any, took more than was reserved: others go for it, or it ends."""
        loaded = (
            self.processes.alive.get(record.name)
            for record in self.ledger.slots.values()
            if not record.ready.is_set() and device_id in (None, record.device_id)
        )
        return any(found is not None and found.measured_bytes is not None for found in loaded)

    @invariant()
    def never_over_budget(self):
        for device in self.ledger.devices.values():
            slots = [slot for slot in self.ledger.slots.values() if slot.device_id == device.device_id]
            assert device.used_bytes == sum(slot.reserved_bytes for slot in slots)
            assert device.used_bytes <= device.budget_bytes or self.has_grown(device.device_id)
            assert device.held_bytes == sum(slot.held_bytes for slot in slots) <= device.capacity_bytes
        assert self.ledger.used_bytes == sum(slot.reserved_bytes for slot in self.ledger.slots.values())
        with_spare = [device for device in self.ledger.devices.values() if device.spare_bytes]
        most = self.ledger.budget_bytes if self.total is None else self.total
        there = sum(device.node in self.processes.idle for device in with_spare) * self.spare if self.total else 0
        assert self.ledger.used_bytes + there <= most or self.has_grown()

    @invariant()
    def no_process_was_asked_for_what_it_cannot_do(self):
        assert self.processes.violations == []

    @invariant()
    def what_a_process_keeps_is_in_the_ledger(self):
        for name, kept in self.processes.closed.items():
            slot = self.ledger.slots.get(name) or next(
                (slot for slot in self.ledger.slots.values() if slot.predecessor == name), None
            )
            assert slot is None or slot.reserved_bytes >= kept

    @invariant()
    def every_process_has_one_session(self):
        """What Ray holds for processes is what the ledger says: none is forgotten, and none serves two sessions."""
        records = (self.ledger.slots | self.book.records).values()
        for found in self.processes.alive.values():
            owners = [record for record in records if record.handle and record.handle.pid == found.started.pid]
            assert [owner.held_bytes for owner in owners] == [found.held_bytes]

    @invariant()
    def one_load_a_device_and_entry(self):
        """A model that spreads loads on several devices at once, each its own."""
        for key in map(key_of, MODELS):
            pending = [record for record in self.book.of_key(key) if not record.ready.is_set()]
            assert len({record.device_id for record in pending}) == len(pending)
            places = [slot.device_id for slot in self.ledger.of_key(key) if slot.state is not SlotState.RETIRING]
            assert len(places) == len(set(places))

    @invariant()
    def what_is_pinned_stays(self):
        for key in self.book.pinned:
            assert any(slot.is_pinned for slot in self.ledger.of_key(key)) or not any(
                record.is_usable for record in self.book.of_key(key)
            )

    @invariant()
    def who_is_dead_is_not_offered(self):
        assert all(record.name in self.processes.alive for record in self.book.records.values() if record.is_usable)

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
        for task in list(self.others):
            if task.done():
                assert isinstance(task.exception(), errors.GenAIRayError | None), task.exception()
                self.others.remove(task)


@pytest.fixture
def own_clock(monkeypatch, tmp_path):
    for module in (actor, session_table, eviction, leases, loading, maintenance, spares):
        monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(actor, "sizes_file", lambda: tmp_path / f"{CLOCK.history}.json")
    monkeypatch.setattr(session_table, "uuid", CLOCK)


def run(max_examples, steps, phases=tuple(Phase)):
    patience = settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(CacheMachine, settings=patience)


def test_no_history_of_requests_breaks_an_invariant(own_clock):
    run(200, 50, (Phase.generate,))  # the slow test below shrinks what it finds


@pytest.mark.slow
@pytest.mark.longest  # two hundred shorter histories run every time
def test_no_long_history_of_requests_breaks_an_invariant(own_clock):
    run(1000, 80)


class Chosen:
    """Draws what a test has chosen."""

    def __init__(self, value):
        self.value = value

    def draw(self, strategy):
        return self.value


@pytest.fixture
def machine(own_clock):
    """A cache on two nodes of memory, of which a test writes the history itself."""
    machine = CacheMachine()
    machine.begin_history(None, EvictionPolicy.LRU, SimpleNamespace(random=lambda: 0.6))
    machine.node_comes(kind=0, budget=700, unit=1)
    yield machine
    machine.teardown()


def let(machine, what, number, count=1):
    """Let the processes of a model take a step."""
    for _ in range(count):
        calls = machine.processes.pending(what)
        machine.goes_on(next(call for call in calls if call.name.startswith(f"session:model-{number}:")))


def go_on(machine, until=None):
    """Let all processes do their work, up to a step that one of them is asked for."""
    for _ in range(100):
        calls = machine.processes.pending("start", *EVICTION, "end")
        if until is not None and until in [call.what for call in calls]:
            return
        if calls:
            machine.goes_on(calls[0])
        else:
            machine.time_passes(0.5)
        for check in (
            machine.never_over_budget,
            machine.no_process_was_asked_for_what_it_cannot_do,
            machine.what_a_process_keeps_is_in_the_ledger,
            machine.every_process_has_one_session,
        ):
            check()


@pytest.fixture
def full(machine):
    """Each of the two nodes has one session; a third one, which fits neither beside it, is asked for."""
    for number in (0, 1):
        machine.ask(number, count=1, within_s=20.0, predicted=400, is_explicit=False)
        go_on(machine, until="none")
    machine.ask(3, count=1, within_s=60.0, predicted=380, is_explicit=False)
    return machine


def test_the_third_session_takes_over_the_process_of_the_first(full):
    (held,) = [found.held_bytes for name, found in full.processes.alive.items() if "model-0" in name]
    (waiter,) = full.waiters
    go_on(full)
    (session,) = waiter.task.result().replicas
    assert "model-3" in session.name
    assert full.ledger.slots[session.name].held_bytes == held == 480 * MB
    assert full.ledger.slots[session.name].reserved_bytes <= 460 * MB
    assert (full.processes.count, full.book.counts["reuses"]) == (2, 1)


@pytest.mark.parametrize("step", TAKEOVER)
def test_a_process_that_dies_while_it_is_taken_over_is_replaced(full, step):
    (waiter,) = full.waiters
    go_on(full, until=step)
    (call,) = full.processes.pending(step)
    full.processes.die(call.name)
    full.drive()
    go_on(full)
    assert "model-3" in waiter.task.result().replicas[0].name
    assert (full.processes.count, full.book.counts["reuses"], full.book.counts["failures"]) == (3, 0, 0)
    is_evicted = step in ("close", "reopen", "load")  # before, it died by itself
    assert full.book.counts["evictions"] == is_evicted


@pytest.mark.parametrize(
    ("step", "within_s"),
    [
        ("try_retire", eviction.ANSWER_WITHIN_S),
        ("close", eviction.CLOSE_WITHIN_S),
        ("reopen", loading.REOPEN_WITHIN_S),
    ],
)
def test_a_process_that_hangs_while_it_is_taken_over_is_ended(full, step, within_s):
    (waiter,) = full.waiters
    go_on(full, until=step)
    full.time_passes(within_s + 1)
    go_on(full)
    assert "model-3" in waiter.task.result().replicas[0].name
    assert (full.processes.count, full.book.counts["reuses"]) == (3, 0)
    assert full.book.counts["evictions"] == (step != "try_retire")


def test_what_a_process_keeps_is_reserved_and_not_remembered(full):
    (waiter,) = full.waiters
    full.chance = SimpleNamespace(random=lambda: 0.6)
    go_on(full, until="load")
    (slot,) = full.records(SlotState.LOADING)
    assert (slot.reserved_bytes, slot.inherited_bytes) == (467 * MB, 12 * MB)  # 5 of the 12 are growth
    go_on(full)
    (session,) = waiter.task.result().replicas
    asked = full.book.records[session.name].load_request
    known = full.cache._sizes.expected(asked.digest, asked.request, CPU, 0)
    assert full.ledger.slots[session.name].reserved_bytes - known == 7 * MB
    assert full.book.counts["reuses"] == 1


def test_what_a_process_has_grown_by_is_not_reserved_twice(full):
    """It kept 3 MB of earlier sessions: of the 5 MB by which every session grows 2 are left."""
    full.chance = SimpleNamespace(random=lambda: 0.15)
    (waiter,) = full.waiters
    go_on(full)
    (session,) = waiter.task.result().replicas
    slot, found = full.ledger.slots[session.name], full.processes.alive[session.name]
    assert (found.inherited_bytes, slot.reserved_bytes) == (3 * MB, found.measured_bytes + GROWTH_BYTES - 3 * MB)
    asked = full.book.records[session.name].load_request
    assert full.cache._sizes.expected(asked.digest, asked.request, CPU, 0) == slot.reserved_bytes


def test_what_a_process_keeps_may_be_part_of_what_was_given(machine):
    """Of 300 MB the models take 280, and the process keeps 7."""
    machine.chance = SimpleNamespace(random=lambda: 0.6)
    models = [replace(MODELS[2], model=f"given-{number}") for number in range(4)]
    for model in models[:3]:
        machine.wait(LoadRequest(model, model.model, 200 * MB), CLOCK.now_s + 60.0)
        go_on(machine)
    machine.wait(LoadRequest(models[3], "given-3", 200 * MB), CLOCK.now_s + 60.0)
    go_on(machine, until="load")
    (slot,) = machine.records(SlotState.LOADING)
    assert (slot.reserved_bytes, slot.held_bytes, slot.inherited_bytes) == (300 * MB, 300 * MB, 12 * MB)
    go_on(machine)


def test_a_process_that_keeps_more_than_ray_has_room_for_ends(machine):
    for number in (0, 1, 3):
        machine.ask(number, count=1, within_s=60.0, predicted=395, is_explicit=False)
        go_on(machine)
    assert (machine.processes.count, machine.book.counts["reuses"], machine.book.counts["evictions"]) == (3, 0, 1)


def test_a_session_of_another_runtime_takes_over_no_process(full):
    go_on(full)
    other = replace(MODELS[1], model="other", backend=ModelBackend.OPENVINO)
    full.wait(LoadRequest(other, "other", 360 * MB), CLOCK.now_s + 60.0)
    (waiter,) = full.waiters
    go_on(full)
    assert "other" in waiter.task.result().replicas[0].name
    assert (full.processes.count, full.book.counts["reuses"]) == (3, 1)


def test_a_session_that_does_not_drain_is_used_again(full):
    go_on(full)
    other = replace(MODELS[1], model="other", backend=ModelBackend.OPENVINO)
    full.wait(LoadRequest(other, "other", 360 * MB), CLOCK.now_s + 60.0)
    (waiter,) = full.waiters
    go_on(full, until="drain")
    (call,) = full.processes.pending("drain")
    evicted = full.book.counts["evictions"]
    full.time_passes(eviction.ANSWER_WITHIN_S + 1)
    assert full.book.counts["evictions"] == evicted
    assert call.name in full.processes.alive
    go_on(full)
    assert "other" in waiter.task.result().replicas[0].name
    assert full.book.counts["evictions"] == evicted + 1


def test_a_node_that_leaves_during_a_takeover_costs_nothing(full):
    (waiter,) = full.waiters
    go_on(full, until="reopen")
    (call,) = full.processes.pending("reopen")
    node = full.processes.alive[call.name].started.node
    del full.nodes[node]

    async def hear():
        full.cache._maintenance._remove(node)

    full.drive(hear())
    full.goes_on(call)  # its answer was on the way
    for name in [name for name, found in full.processes.alive.items() if found.started.node == node]:
        full.processes.die(name)
    go_on(full)
    assert "model-3" in waiter.task.result().replicas[0].name
    assert full.book.counts["failures"] == 0


@pytest.fixture
def crowded(machine):
    """One node with room for 480 MB: a session of 239 MB, of another for which Ray holds 390; one of 83, one of 95."""
    machine.teardown()
    machine.begin_history(480, EvictionPolicy.LRU, SimpleNamespace(random=lambda: 0.0))
    machine.node_comes(kind=0, budget=3000, unit=1)
    machine.node_dies(Chosen("node0"), is_told_first=True)
    return machine


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_sessions_go_in_order_whoever_leaves_its_process(crowded, first, second):
    predicted = {0: 310, 1: 50, 3: 70}
    for number in (first, second, 3):
        crowded.ask(number, count=1, within_s=20.0, predicted=predicted[number], is_explicit=False)
        go_on(crowded)
    places = {
        name: slot.name for slot in crowded.ledger.slots.values() for name in predicted if f"-{name}:" in slot.name
    }
    crowded.ask(4, count=1, within_s=60.0, predicted=300, is_explicit=False)
    (call,) = crowded.processes.pending("try_retire")
    assert call.name == places[first]
    go_on(crowded, until="close" if first == 0 else "end")
    let(crowded, "close" if first == 0 else "end", first)
    (call,) = crowded.processes.pending("try_retire")
    assert call.name == places[second]
    crowded.refuses_to_retire(Chosen(call))
    assert places[second] in crowded.processes.alive
    if first == 0:  # nobody takes over what has closed
        assert [call.name for call in crowded.processes.pending("end")] == [places[first]]
    (waiter,) = crowded.waiters
    go_on(crowded)
    assert "model-4" in waiter.task.result().replicas[0].name


@pytest.mark.parametrize("step", TAKEOVER)
def test_a_cache_that_dies_during_a_takeover_knows_all(full, step):
    go_on(full, until=step)
    full.cache_starts_again(Chosen(sorted(full.processes.alive)))
    (waiter,) = full.waiters
    go_on(full)
    assert "model-3" in waiter.task.result().replicas[0].name
    assert full.book.counts["adoptions"] >= 1


def test_a_load_that_fails_in_a_used_process_is_tried_anew(full):
    (waiter,) = full.waiters
    go_on(full, until="load")
    full.load_fails(Chosen(full.processes.pending("load")[0]), dies=False)
    assert not waiter.task.done()
    go_on(full)
    assert "model-3" in waiter.task.result().replicas[0].name
    assert (full.processes.count, full.book.counts["reuses"], full.book.counts["failures"]) == (3, 0, 0)


def test_a_load_that_kills_every_process_is_given_up(full):
    """The death of a used process says nothing of the model; three of new ones do."""
    (waiter,) = full.waiters
    for _ in range(1 + loading.MAX_TRIES):
        assert not waiter.task.done()
        go_on(full, until="load")
        full.load_fails(Chosen(full.processes.pending("load")[0]), dies=True)
    failed_s = CLOCK.now_s
    while not waiter.task.done():
        if calls := full.processes.pending("end"):
            full.goes_on(calls[0])
        else:
            full.time_passes(0.5)
    assert CLOCK.now_s - failed_s <= loading.BACKOFF_S  # after the last try only for the news that its node has died
    assert "model-3 ended while it loaded" in str(waiter.task.exception())
    assert (full.processes.count, full.book.counts["reuses"]) == (2 + loading.MAX_TRIES, 0)


def test_a_used_process_that_fails_after_a_restart_is_replaced(full):
    go_on(full, until="load")
    full.cache_starts_again(Chosen(sorted(full.processes.alive)))
    (waiter,) = full.waiters
    full.load_fails(Chosen(full.processes.pending("load")[0]), dies=False)
    go_on(full)
    assert "model-3" in waiter.task.result().replicas[0].name
    assert full.processes.count == 3


def test_a_process_that_holds_memory_back_is_ended(full):
    full.chance = SimpleNamespace(random=lambda: 0.9)
    go_on(full, until="drain")
    assert full.book.counts["evictions"] == 1  # it is closed, and still answers calls on their way
    go_on(full, until="end")
    (call,) = full.processes.pending("end")
    assert "model-0" in call.name
    assert full.ledger.slots[call.name].is_retiring  # its bytes are not free before its process is gone
    go_on(full)
    assert (full.processes.count, full.book.counts["reuses"]) == (3, 0)


@pytest.fixture
def in_use(machine):
    """One node with room for four sessions of 230 MB, which all have loaded; and others that may be asked for."""
    machine.teardown()
    machine.begin_history(1000, EvictionPolicy.LRU, SimpleNamespace(random=lambda: 0.6))
    machine.node_comes(kind=0, budget=3000, unit=1)
    machine.node_dies(Chosen("node0"), is_told_first=True)
    machine.others_asked = [replace(MODELS[0], model=f"other-{number}") for number in range(3)]
    for number in (0, 1, 3, 4):
        machine.ask(number, count=1, within_s=60.0, predicted=150, is_explicit=False)
        machine.work_is_done(40)
    assert len(machine.records(SlotState.READY)) == 4
    return machine


def test_a_load_evicts_nothing_before_its_turn(in_use):
    for model in in_use.others_asked:
        in_use.wait(LoadRequest(model, model.model, 150 * MB), CLOCK.now_s + 60.0)
    tasks = [waiter.task for waiter in in_use.waiters[-3:]]
    in_use.drive()
    assert len(in_use.processes.pending("try_retire")) == eviction.LOADS_AT_ONCE == 2
    assert len(in_use.records(SlotState.READY)) == 2
    (last,) = in_use.book.of_key(key_of(in_use.others_asked[-1]))
    assert "2 others are loaded first" in str(last.blocked)
    go_on(in_use, until="load")
    assert len(in_use.records(SlotState.READY)) == 2
    in_use.goes_on(in_use.processes.pending("load")[0])
    assert len(in_use.processes.pending("try_retire")) == 1
    go_on(in_use)
    names = [task.result().replicas[0].name for task in tasks]
    assert [model.model in name for model, name in zip(in_use.others_asked, names, strict=True)] == [True] * 3


def test_who_waits_for_a_turn_survives_the_node_or_gives_up(in_use):
    """Of two that wait, one has no time; the node on which others load dies, and the rest goes to another one."""
    in_use.node_comes(kind=0, budget=4000, unit=1)
    models = [*in_use.others_asked, replace(MODELS[0], model="hasty")]
    for model, within_s in zip(models, (60.0, 60.0, 60.0, 0.5), strict=True):
        in_use.wait(LoadRequest(model, model.model, 150 * MB), CLOCK.now_s + within_s)
        in_use.drive()
    tasks = [waiter.task for waiter in in_use.waiters[-4:]]
    go_on(in_use, until="load")
    (node,) = {slot.device_id.partition("/")[0] for slot in in_use.records(SlotState.LOADING)}
    in_use.time_passes(0.6)
    with pytest.raises(errors.ResourceExhaustedError, match="2 others are loaded first"):
        in_use.drive(tasks.pop())
    assert in_use.book.of_key(key_of(models.pop())) == []
    in_use.node_dies(Chosen(node), is_told_first=False)
    go_on(in_use)
    places = {slot.device_id for slot in in_use.records(SlotState.READY)}
    assert len(places) == 1
    assert not places & {f"{node}/{CPU}"}
    names = [task.result().replicas[0].name for task in tasks]
    assert [model.model in name for model, name in zip(models, names, strict=True)] == [True] * 3


def test_a_load_by_name_waits_for_no_turn(in_use):
    for model in in_use.others_asked:
        in_use.wait(LoadRequest(model, model.model, 150 * MB, is_explicit=True), CLOCK.now_s + 60.0)
    in_use.drive()
    assert len(in_use.processes.pending("try_retire")) == 3
    go_on(in_use)


@pytest.mark.parametrize(("min_stay_s", "stays_s"), [(5.0, 2.0), (1.0, 1.0)])
def test_a_model_stays_twice_as_long_as_it_took_to_come(in_use, min_stay_s, stays_s):
    """The sessions came in within a second."""
    in_use.cache._evictor._min_stay_s = min_stay_s
    asked = [LoadRequest(model, model.model, 150 * MB) for model in in_use.others_asked]
    in_use.wait(asked[0], CLOCK.now_s + 60.0)
    early = in_use.loop.create_task(in_use.cache.acquire(replace(asked[1], within_s=0.5)))
    in_use.drive()
    in_use.time_passes(0.6)
    words = rf"model-0, which was loaded less than {stays_s:g} s ago.*larger budget, or lower min_stay_s"
    with pytest.raises(errors.ResourceExhaustedError, match=words):
        in_use.drive(early)
    in_use.time_passes(stays_s - 0.6 - 0.1)
    assert in_use.processes.pending("try_retire") == []
    in_use.wait(replace(asked[2], is_explicit=True), CLOCK.now_s + 60.0)
    in_use.drive()
    assert len(in_use.processes.pending("try_retire")) == 1
    in_use.time_passes(0.2)
    assert len(in_use.processes.pending("try_retire")) == 2
    go_on(in_use)


def test_nothing_starts_on_a_dead_node_not_yet_missed(machine):
    machine.node_comes(kind=0, budget=400, unit=1)
    machine.lease({0, 1}, 1)
    for node in ("node2", "node1"):
        machine.node_comes(kind=0, budget=400, unit=1)
        machine.node_dies(Chosen(node), is_told_first=False)
        assert {found.started.node for found in machine.processes.alive.values()} <= set(machine.nodes)
    machine.cache_starts_again(Chosen(sorted(machine.processes.alive)))


@pytest.mark.parametrize("dies", [False, True])
def test_a_first_load_that_fails_leaves_all_to_its_replica(machine, dies):
    machine.lease({4}, 2)
    let(machine, "start", 4, count=2)
    first, replica = machine.book.of_key(key_of(MODELS[4]))
    machine.ask(4, count=1, within_s=20.0, predicted=100, is_explicit=False)
    machine.load_fails(
        Chosen(next(call for call in machine.processes.pending("load") if call.name == first.name)), dies
    )
    if not dies:
        let(machine, "end", 4)
    assert machine.book.of_key(first.key) == [replica]
    let(machine, "load", 4)
    assert [waiter.task.result().replicas[0].name for waiter in machine.waiters] == [replica.name]


def test_no_replica_takes_a_place_while_the_first_seeks_one(machine):
    machine.lease({4}, 2)
    let(machine, "start", 4, count=2)
    first, replica = machine.book.of_key(key_of(MODELS[4]))
    for record in (replica, first):
        machine.processes.die(record.name)
        machine.drive()
    machine.models_of_leases_spread()
    assert machine.book.of_key(first.key) == [first]
    machine.time_passes(2.0)
    assert first.is_placed


def test_a_first_load_that_fails_gets_the_room_of_a_replica(machine):
    machine.ask(0, count=1, within_s=20.0, predicted=580, is_explicit=False)
    let(machine, "start", 0)
    let(machine, "load", 0)
    machine.lease({4}, 2)
    (first,) = machine.book.of_key(key_of(MODELS[4]))
    let(machine, "start", 4)
    machine.processes.die(first.name)
    machine.drive()
    for step in ("try_retire", "drain", "end"):  # of the room for a replica
        let(machine, step, 0)
    assert machine.book.of_key(first.key) == [first]
    machine.time_passes(2.0)
    assert [slot.device_id for slot in machine.ledger.of_key(first.key)] == ["node1/cpu"]


def test_a_session_is_told_of_the_pin_of_a_late_one(machine):
    machine.ask(4, count=1, within_s=20.0, predicted=100, is_explicit=False)
    let(machine, "start", 4)
    let(machine, "load", 4)
    (heir,) = machine.records(SlotState.READY)
    found = machine.processes.alive[heir.name]
    machine.processes.alive["late"] = late = replace(
        found,
        name="late",
        started=replace(found.started, pid=1000),
        retention=RetentionInfo(is_pinned=True, leases=("lease 1",)),
    )

    async def come():
        assert machine.cache.take_over(Handle(machine.processes, 1000), late)

    machine.drive(come())
    assert machine.processes.alive[heir.name].retention == late.retention


def test_a_pin_that_passes_to_a_revived_session_survives(machine):
    machine.ask(4, count=1, within_s=20.0, predicted=100, is_explicit=False)
    let(machine, "start", 4)
    let(machine, "load", 4)
    (pinned,) = machine.records(SlotState.READY)
    machine.happens(Chosen(pinned), "pin")
    machine.lease({4}, 2)
    let(machine, "start", 4)
    let(machine, "load", 4)
    machine.release(Chosen("lease 1"))
    (other,) = machine.ledger.evictable()
    machine.spawn(machine.cache.evict_lru())
    machine.processes.die(pinned.name)
    machine.drive()
    machine.refuses_to_retire(Chosen(machine.processes.pending("try_retire")[0]))
    assert other.is_pinned
    assert machine.processes.alive[other.name].retention.is_pinned
    machine.cache_starts_again(Chosen([other.name]))
    assert machine.ledger.slots[other.name].is_pinned


def test_what_loads_during_a_restart_is_told_of_its_lease(machine):
    machine.lease({3, 4}, 1)
    for number in (3, 4):
        let(machine, "start", number)
    let(machine, "load", 3)
    machine.cache_starts_again(Chosen(sorted(machine.processes.alive)))
    assert list(machine.kept) == ["lease 1"]
    let(machine, "load", 4)
    assert [found.retention.leases for found in machine.processes.alive.values()] == [("lease 1",)] * 2


def test_a_renewed_lease_is_told_to_sessions_new_to_it():
    several, (session,) = books_of(1)
    told, stays = [], leases.Leases(several, None, None, None)

    async def hear(_, retention):
        told.append(retention.leases)

    session.handle = SimpleNamespace(set_retention=SimpleNamespace(remote=hear))
    other = LoadRequest(MODELS[1])
    stays.adopt("lease 1", other)
    for _ in range(2):
        assert asyncio.run(stays.renew(LeaseRequest("lease 1", (other, session.load_request), 1)))
    assert told == [("lease 1",)]


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


def test_a_retiring_session_is_told_of_a_new_lease():
    several, (leaving, other) = books_of(2)
    several.ledger.mark(leaving.name, state=SlotState.RETIRING)
    told, stays = [], leases.Leases(several, None, None, None)
    for entry in (leaving, other):

        async def hear(_, retention, name=entry.name):
            told.append((name, retention.leases))

        entry.handle = SimpleNamespace(set_retention=SimpleNamespace(remote=hear))
    stays.adopt("lease 1", leaving.load_request)
    for entry in (leaving, other):
        asyncio.run(stays.tell(entry))
    assert told == [(leaving.name, ("lease 1",)), (other.name, ("lease 1",))]


def test_the_pin_passes_to_a_replica_that_refuses_to_leave():
    several, (pinned, other) = books_of(2)
    several.pinned = {pinned.key}
    several.ledger.mark(pinned.name, is_pinned=True)
    several.ledger.mark(other.name, state=SlotState.RETIRING)
    several.drop(pinned)
    several.revive(other)
    assert list(several.ledger.evictable()) == []


def test_the_pin_of_a_late_session_passes_to_its_successor():
    several, (other,) = books_of(1)
    started = Started("n0", None, 1, 0)
    found = Description(
        "cache",
        "late",
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
    late = actor.enter(found, several, stays)
    assert late.key == other.key
    assert (late.is_retiring, len(stays)) == (True, 1)
    assert several.ledger.slots[other.name].is_pinned
    assert not several.ledger.slots["late"].is_pinned


def test_a_replica_does_not_restore_an_old_max_replicas():
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


def test_a_failed_replica_is_not_retried_there_for_a_while(tmp_path, own_clock):
    CLOCK.begin()
    several, (first,) = books_of(1)
    sizes, begun = SizeMemory(tmp_path / "sizes.json"), []
    sizes.remember("", MODELS[0], CPU, 400)
    loader = loading.Loader(several, 300.0, sizes, CacheMetrics("no cache"))
    evictor = eviction.Evictor(several, loader.need_of, 0.0, lambda slot: None, lambda slot: None)
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
        super().__init__(several, lambda entry: Need(entry.key, entry.load_request.predicted_bytes), 0.0, None, None)
        self.going, self.may_go = [], asyncio.Event()

    async def ask(self, name):
        return None

    async def retire(self, name, finish_within_s=None, *, is_closed=False):
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


def test_nobody_takes_the_room_of_a_load_or_waits_for_it():
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


def test_a_growing_session_and_a_load_take_no_room_of_each_other():
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


def test_a_session_over_its_bytes_waits_for_running_evictions():
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


def test_no_room_is_taken_for_a_load_given_up_meanwhile():
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
