"""One decision of ``placement`` with 10,000 models on 1,000 full devices; goal: at most 200 us at p99."""

import random
import time

from common import keep

from genai_ray.cluster.placement import Device, Ledger, Need, Slot, SlotState, plan

DEVICES, MODELS, DECISIONS, RUNS = 1000, 10_000, 4000, 5
SIZES = (200, 500, 1000, 2000, 4000)


def put(ledger: Ledger[Slot], number: int, need: Need, device_id: str, used_s: float) -> None:
    name = str(number)
    ledger.reserve(Slot(name=name, key=number), need, device_id, used_s)
    ledger.settle(name, need.num_bytes, 1.0, used_s)
    ledger.use(name, used_s, 1)


def fill(chance: random.Random) -> Ledger[Slot]:
    ledger: Ledger[Slot] = Ledger()
    for index in range(DEVICES):
        ledger.add_device(Device(f"d{index}", f"n{index}", "gpu", 15_000, 15_000))
    number = 0
    while len(ledger.slots) < MODELS:
        need = Need(number, chance.choice(SIZES))
        found = plan(ledger, need)
        if found is None or found.victims:
            break
        put(ledger, number, need, found.device_id, chance.random() * 10_000)
        number += 1
    return ledger


def run(seed: int) -> tuple[list[float], int]:
    chance = random.Random(seed)
    ledger = fill(chance)
    models, times = len(ledger.slots), []
    for number in range(MODELS, MODELS + DECISIONS):
        need = Need(number, chance.choice(SIZES))
        began_s = time.perf_counter()
        found = plan(ledger, need)
        times.append(time.perf_counter() - began_s)
        assert found is not None
        for victim in found.victims:
            ledger.mark(victim, state=SlotState.RETIRING)
            ledger.release(victim)
        put(ledger, number, need, found.device_id, 10_000.0 + number)
    return sorted(times), models


def main() -> None:
    runs = [run(seed) for seed in range(RUNS)]
    p50 = sorted(times[len(times) // 2] * 1e6 for times, _ in runs)[RUNS // 2]
    p99 = sorted(times[int(len(times) * 0.99)] * 1e6 for times, _ in runs)[RUNS // 2]
    keep(
        "placement_speed",
        {"models": runs[0][1], "devices": DEVICES, "p50_us": p50, "p99_us": p99},
        [("models", runs[0][1]), ("a decision, us at p50", p50), ("a decision, us at p99 (goal 200)", p99)],
    )


if __name__ == "__main__":
    main()
