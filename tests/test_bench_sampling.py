"""The benchmark of choosing tokens compares two ways that choose the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glmc.kernels import triton
from glmc.kernels.sample.triton import run


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
        import gpu_sampling

        yield gpu_sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_ways_choose_the_same_tokens(bench, dtype):
    torch.manual_seed(3)
    for way, options in bench.WAYS.items():
        for penalty in (False, True):
            one = bench.given(2, dtype, 3.0, penalty, "temperature" in options, "cpu", 60)
            with triton.interpreted():
                same = bench.alike(run, bench.by_torch, [one], options | ({"penalty": 1.3} if penalty else {}))
            assert same == 1, (way, penalty)


def test_what_may_be_asked(bench, capsys):
    asked = bench.parsed(["--rows", "1,4", "--ways", "greedy,top-k and top-p", "--dtypes", "bfloat16"])
    assert (asked.rows, asked.ways, asked.dtypes) == ([1, 4], ["greedy", "top-k and top-p"], [torch.bfloat16])
    assert bench.parsed([]).ways == list(bench.WAYS)
    with pytest.raises(SystemExit):
        bench.parsed(["--ways", "beam"])
    assert "no such way: beam" in capsys.readouterr().err
