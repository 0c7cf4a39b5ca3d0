"""What the checks between two ranks cost: a small broadcast, a large one beside gloo's own, and the header of a collective."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import summary
from report import Report, default_out

SMALL, LARGE = 1 << 10, 64 << 20
SMALL_BAR, LARGE_BAR = 300.0, 0.7
HOW = ("two processes on the loopback address, one thread each, contenders taking turns; microseconds on rank 0. 1 KB: 128 "
       "int64. 64 MB: int64, and float32, which is looked through for values that are not finite first. raw: gloo's broadcast "
       "into a new tensor, which is what a receiver must have; into the same tensor it does not pay for new "
       "pages, and is reported too. Large pages are on (THP_MEM_ALLOC_ENABLE=1), as `glmc run --ranks` sets them")


def child(file: Path, rounds: int) -> None:
    """One of the two ranks; rank 0 prints microseconds by contender."""
    import torch
    import torch.distributed as dist

    from glmc.runtime.world import World

    torch.set_num_threads(1)
    world = World.open(60.0, file)
    group, main = world.exchange.group, world.rank == 0
    options = dist.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    small, hidden = torch.zeros(SMALL // 8, dtype=torch.int64), torch.ones(1, 4096)
    large = {"int64": torch.ones(LARGE // 8, dtype=torch.int64), "float32": torch.ones(LARGE // 4)}
    buffer = torch.zeros(LARGE // 8, dtype=torch.int64)

    def raw(tensor: torch.Tensor) -> None:
        group.broadcast([tensor], options).wait()

    def fresh(tensor: torch.Tensor) -> None:
        raw(tensor if main else torch.empty_like(tensor))

    calls: dict[str, tuple[Callable[[], object], int]] = {
        "1 KB": (lambda: world.main_then_broadcast("small", lambda: {"ids": small}), 200),
        "1 KB raw": (lambda: raw(small), 200),
        "sum of 16 KB": (lambda: world.all_reduce(hidden), 200),
        "sum of 16 KB raw": (lambda: group.allreduce([hidden.clone()]).wait(), 200),
        "sum of 1 MB": (lambda: world.all_reduce(large["float32"][:1 << 18]), 20),
        "sum of 1 MB raw": (lambda: group.allreduce([large["float32"][:1 << 18].clone()]).wait(), 20),
        "swap": (lambda: world.exchange.swap("swap"), 200),
        "64 MB raw, same tensor": (lambda: raw(buffer), 3),
    }
    for name, tensor in large.items():
        calls[f"64 MB {name}"] = (lambda t=tensor: world.main_then_broadcast("large", lambda: {"latents": t}), 3)
        calls[f"64 MB {name} raw"] = (lambda t=tensor: fresh(t), 3)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):
        for name, (call, count) in calls.items():
            for _ in range(count):
                began = time.perf_counter()
                call()
                if number >= 0:
                    times[name].append((time.perf_counter() - began) * 1e6)
    world.close()
    if main:
        print(json.dumps(times), flush=True)
    os._exit(0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--out", type=Path, default=default_out("broadcast"))
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        return child(given.child, given.rounds)
    report = Report("broadcast", given.out)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as folder:
        words = [sys.executable, __file__, "--child", str(Path(folder) / "meeting"), "--rounds", str(given.rounds)]
        environment = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
        ranks = [subprocess.Popen(words, env=environment | {"RANK": i}, stdout=subprocess.PIPE) for i in "01"]
        output = [rank.communicate(timeout=600)[0] for rank in ranks]
    found = {name: summary(samples) for name, samples in json.loads(output[0]).items()}
    median = {name: figures["median"] for name, figures in found.items()}
    report.add("broadcast of 1 KB, median", median["1 KB"], "us", SMALL_BAR)
    report.add("broadcast of 1 KB, least", found["1 KB"]["min"], "us")
    report.add("the same by gloo alone, median", median["1 KB raw"], "us")
    for name in ("int64", "float32"):
        share = median[f"64 MB {name} raw"] / median[f"64 MB {name}"]
        least = found[f"64 MB {name} raw"]["min"] / found[f"64 MB {name}"]["min"]
        report.add(f"64 MB of {name}: gloo's own time over ours, medians", share, "", LARGE_BAR, "higher")
        report.add(f"64 MB of {name}: gloo's own time over ours, least", least, "", LARGE_BAR, "higher")
    report.add("64 MB of int64, median", median["64 MB int64"] / 1000, "ms")
    report.add("gloo's own, into the same tensor each time", median["64 MB raw, same tensor"] / 1000, "ms")
    report.add("a checked sum of 16 KB over gloo's", median["sum of 16 KB"] / median["sum of 16 KB raw"], "", 1.0)
    report.add("a checked sum of 1 MB over gloo's", median["sum of 1 MB"] / median["sum of 1 MB raw"], "", 1.0)
    report.add("a swap of headers alone, median", median["swap"], "us")
    report.add("a swap of headers alone, least", found["swap"]["min"], "us")
    for figures in found.values():
        figures.pop("samples")  # thousands
    report.finish(HOW, {"microseconds": found, "rounds": given.rounds})
    return None


if __name__ == "__main__":
    main()
