"""Energy, where the machine counts it and lets us read: the RAPL counters of its CPU packages."""

from __future__ import annotations

from pathlib import Path

_ZONES = Path("/sys/class/powercap")


def counters(zones: Path = _ZONES) -> list[Path]:
    """The packages' counters that can be read, whole packages only: cores and memory are part of them."""
    found = []
    for zone in sorted(zones.glob("intel-rapl:[0-9]*")) if zones.is_dir() else ():
        if zone.name.count(":") == 1 and _value(zone / "energy_uj") is not None:
            found.append(zone)
    return found


def read(found: list[Path]) -> list[int]:
    """Each counter now, in microjoules; 0 of one that cannot be read any more."""
    return [_value(zone / "energy_uj") or 0 for zone in found]


def joules(found: list[Path], before: list[int], after: list[int]) -> float:
    """What was used between two readings, for counters that begin again at their greatest value."""
    total = 0
    for zone, first, last in zip(found, before, after, strict=True):
        total += last - first if last >= first else last - first + (_value(zone / "max_energy_range_uj") or 0)
    return total / 1e6


def _value(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
