"""What goes when: the cache's own placement over traces, beside per-replica LRU by count, one ideal pool, and Belady's
bound.

A trace is a list of (second, model). Models have bytes and seconds to load. Every policy starts empty; a miss loads the
model and evicts what the policy says. Printed: hit rate, cold loads, gigabytes loaded, seconds that requests waited for
loads.
"""

from __future__ import annotations

import bisect
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common import keep

from genai_ray.cluster.placement import Device, EvictionPolicy, Ledger, Need, Slot, SlotState, plan

GB = 1_000_000_000


@dataclass(frozen=True)
class Model:
    """One model of a trace."""

    num_bytes: int
    load_s: float


@dataclass(frozen=True)
class Trace:
    """Requests, and what they are for."""

    name: str
    models: list[Model]
    requests: list[int]
    num_devices: int
    device_bytes: int
    rate_hz: float = 10.0


@dataclass
class Statistics:
    """What a policy did with a trace."""

    requests: int = 0
    loads: int = 0
    loaded_bytes: int = 0
    stall_s: float = 0.0

    def load(self, model: Model) -> None:
        self.loads += 1
        self.loaded_bytes += model.num_bytes
        self.stall_s += model.load_s

    def figures(self, trace: Trace) -> dict[str, float]:
        return {
            "hit_rate": 1 - self.loads / self.requests,
            "loads": self.loads,
            "loads_per_hour": self.loads / (self.requests / trace.rate_hz / 3600),
            "loaded_gb": self.loaded_bytes / GB,
            "stall_s": self.stall_s,
        }


def by_placement(trace: Trace, policy: EvictionPolicy) -> Statistics:
    """The ledger and ``plan`` of the product, one session a model."""
    ledger: Ledger[Slot] = Ledger(policy=policy)
    for index in range(trace.num_devices):
        ledger.add_device(Device(f"d{index:04}", f"n{index:04}", "gpu", trace.device_bytes, trace.device_bytes))
    tally, names = Statistics(), 0
    for number, wanted in enumerate(trace.requests):
        now_s = number / trace.rate_hz
        tally.requests += 1
        there = ledger.of_key(wanted)
        if there:
            ledger.use(there[0].name, now_s, there[0].uses + 1)
            continue
        model = trace.models[wanted]
        need = Need(wanted, model.num_bytes)
        found = plan(ledger, need)
        assert found is not None
        for victim in found.victims:
            ledger.mark(victim, state=SlotState.RETIRING)
            ledger.release(victim)
        names += 1
        ledger.reserve(Slot(name=str(names), key=wanted), need, found.device_id, now_s)
        ledger.settle(str(names), model.num_bytes, model.load_s, now_s)
        ledger.use(str(names), now_s, 1)
        tally.load(model)
    return tally


def by_ideal_pool(trace: Trace) -> Statistics:
    """One device with the bytes of all, exact LRU: no fragments, no wrong place."""
    room, there, tally = trace.num_devices * trace.device_bytes, OrderedDict[int, None](), Statistics()
    for wanted in trace.requests:
        tally.requests += 1
        if wanted in there:
            there.move_to_end(wanted)
            continue
        model = trace.models[wanted]
        while room < model.num_bytes:
            victim, _ = there.popitem(last=False)
            room += trace.models[victim].num_bytes
        room -= model.num_bytes
        there[wanted] = None
        tally.load(model)
    return tally


def by_belady(trace: Trace) -> Statistics:
    """The same pool with foresight: what is used again last goes first (a bound for equal sizes; a strong rival for
    unequal ones)."""
    uses: dict[int, list[int]] = {}
    for number, wanted in enumerate(trace.requests):
        uses.setdefault(wanted, []).append(number)
    room, there, tally = trace.num_devices * trace.device_bytes, set[int](), Statistics()
    order: list[tuple[int, int]] = []  # (-next use, model), sorted
    following: dict[int, int] = {}
    never = len(trace.requests)

    def reorder(model: int, number: int) -> None:
        if model in following:
            del order[bisect.bisect_left(order, (-following.pop(model), model))]
        at = bisect.bisect_right(uses[model], number)
        following[model] = uses[model][at] if at < len(uses[model]) else never + model
        bisect.insort(order, (-following[model], model))

    for number, wanted in enumerate(trace.requests):
        tally.requests += 1
        if wanted in there:
            reorder(wanted, number)
            continue
        model = trace.models[wanted]
        while room < model.num_bytes:
            _, victim = order.pop(0)
            del following[victim]
            there.discard(victim)
            room += trace.models[victim].num_bytes
        room -= model.num_bytes
        there.add(wanted)
        reorder(wanted, number)
        tally.load(model)
    return tally


def by_count_per_replica(trace: Trace, most: int) -> Statistics:
    """What ``@serve.multiplexed`` does: LRU by number of models within each replica; a request goes to a replica that
    has the model, else to the one with the fewest, else to any. ``most`` is the largest number that never runs a device
    out of memory on this trace.
    """
    chance = random.Random(1)
    replicas = [OrderedDict[int, None]() for _ in range(trace.num_devices)]
    where: dict[int, int] = {}
    tally = Statistics()
    for wanted in trace.requests:
        tally.requests += 1
        if wanted in where:
            replicas[where[wanted]].move_to_end(wanted)
            continue
        fewest = min(len(replica) for replica in replicas)
        index = chance.choice([i for i, replica in enumerate(replicas) if len(replica) == fewest])
        if len(replicas[index]) == most:
            victim, _ = replicas[index].popitem(last=False)
            del where[victim]
        replicas[index][wanted] = None
        where[wanted] = index
        tally.load(trace.models[wanted])
    return tally


def safe_count(trace: Trace) -> int:
    """Return how many models a replica may have at once so that the largest ones together still fit its device."""
    sizes, total = sorted((model.num_bytes for model in trace.models), reverse=True), 0
    for count, size in enumerate(sizes):
        total += size
        if total > trace.device_bytes:
            return max(count, 1)
    return len(sizes)


def zipf(models: int, requests: int, exponent: float, chance: random.Random) -> list[int]:
    weights = [1 / rank**exponent for rank in range(1, models + 1)]
    return chance.choices(range(models), weights, k=requests)


def traces() -> Iterable[Trace]:
    chance = random.Random(0)
    sizes = [chance.choice((0.2, 0.5, 1, 2, 4)) for _ in range(3000)]
    models = [Model(int(size * GB), 0.5 + 2 * size) for size in sizes]
    yield Trace("Zipf 0.9, 3,000 models, 100 devices of 24 GB", models, zipf(3000, 60_000, 0.9, chance), 100, 24 * GB)
    drifting = [
        (wanted + 100 * (number // 6000)) % 3000 for number, wanted in enumerate(zipf(3000, 60_000, 1.1, chance))
    ]
    yield Trace("Zipf 1.1 that drifts", models, drifting, 100, 24 * GB)
    twelve = [Model(600_000_000, 4.0) for _ in range(12)]
    yield Trace("12 models of 600 MB, room for 9", twelve, zipf(12, 20_000, 0.8, chance), 1, int(5.7 * GB), rate_hz=1.0)
    turns = [number % 12 for number in range(20_000)]
    yield Trace("the same 12 strictly in turn", twelve, turns, 1, int(5.7 * GB), rate_hz=1.0)
    dear = [Model(600_000_000, 40.0 if index == 5 else 2.0) for index in range(12)]
    yield Trace("12 models, one costs 20 x to load", dear, zipf(12, 20_000, 0.8, chance), 1, int(5.7 * GB), rate_hz=1.0)


def main() -> None:
    figures: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[tuple[str, str]] = []
    for trace in traces():
        count = safe_count(trace)
        policies: dict[str, Callable[[], Statistics]] = {
            "genai_ray lru": lambda t=trace: by_placement(t, EvictionPolicy.LRU),
            "genai_ray gdsf": lambda t=trace: by_placement(t, EvictionPolicy.GDSF),
            f"per replica, at most {count} models": lambda t=trace, c=count: by_count_per_replica(t, c),
            "ideal pool lru": lambda t=trace: by_ideal_pool(t),
            "Belady": lambda t=trace: by_belady(t),
        }
        rows.append((f"-- {trace.name}", ""))
        figures[trace.name] = {}
        for name, run in policies.items():
            found = run().figures(trace)
            figures[trace.name][name.split(",")[0]] = found
            loads = f"{found['loads']:.0f} loads ({found['loads_per_hour']:.0f} an hour)"
            loaded = f"{found['loaded_gb']:.0f} GB, {found['stall_s']:.0f} s stalled"
            rows.append((name, f"hits {found['hit_rate']:.3f}, {loads}, {loaded}"))
    first = next(iter(figures.values()))
    to_ideal = first["genai_ray lru"]["loads"] / first["ideal pool lru"]["loads"]
    to_count = first["genai_ray lru"]["loads"] / first["per replica"]["loads"]
    dear = figures["12 models, one costs 20 x to load"]
    to_lru = dear["genai_ray gdsf"]["stall_s"] / dear["genai_ray lru"]["stall_s"]
    rows += [
        ("cold loads over the ideal pool (goal 1.05)", to_ideal),
        ("cold loads over per replica by count (goal 0.7)", to_count),
    ]
    rows += [("gdsf: stalled seconds over lru, one dear model (goal below 1)", to_lru)]
    keep(
        "cache_policies",
        {
            "loads_over_ideal": to_ideal,
            "loads_over_per_replica": to_count,
            "gdsf_stall_over_lru": to_lru,
            "traces": figures,
        },
        rows,
    )


if __name__ == "__main__":
    main()
