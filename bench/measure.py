"""What every benchmark measures the same way: it stands in glmc.bench, which `glmc bench` measures with too."""

from glmc.bench.machine import machine
from glmc.bench.other_load import load_average
from glmc.bench.probe import matrix_rate, read_bandwidth, steady
from glmc.bench.turns import interleave, seconds_of, summary

__all__ = ["interleave", "load_average", "machine", "matrix_rate", "read_bandwidth", "seconds_of", "steady", "summary"]
