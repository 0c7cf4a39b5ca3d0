"""compute-sanitizer finds nothing in any Triton kernel; what it says is read as its documentation shows it."""

from __future__ import annotations

import pytest
import sanitizing
import torch
from launching import OPS, own
from sanitizing import heard

KERNELS = sorted({name for op in OPS for name in own(op)})
TOOL = sanitizing.found()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
          pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is neither on PATH nor in a CUDA toolkit nor installed by "
                                                  "pip (nvidia-cuda-sanitizer-api)")]

MEMCHECK = """\
========= COMPUTE-SANITIZER
Mallocing memory
========= Invalid __global__ write of size 4 bytes
=========     at unaligned_kernel()+0x50
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x710fdca00001 is misaligned
=========     and is inside the nearest allocation at 0x710fdca00000 of size 4 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: run_unaligned() [0xacd4] in memcheck_demo
=========         Host Frame: main [0xae61] in memcheck_demo
=========
Running unaligned_kernel: no error
========= Invalid __global__ write of size 4 bytes
=========     at out_of_bounds_function()+0xb0 in memcheck_demo.cu:39
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x87654320 is out of bounds
=========         Device Frame: out_of_bounds_kernel()+0x30 in memcheck_demo.cu:44
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sumKernel(int *, int *)+0x90 in b.cu:41
=========     and Read access at sumKernel(int *, int *)+0x100 in b.cu:51 [508 hazards]
=========
========= Warning: (Warp Level Programming) Potential RAW hazard detected at __shared__ 0x8c in block (0,0,0) :
=========     Write Thread (35,0,0) at sumKernel(int *, int *)+0x90 in warp_error.cu:44
=========     Read Thread (32,0,0) at sumKernel(int *, int *)+0x120 in warp_error.cu:56
=========     Current Value : 35
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
SYNCCHECK = """\
 ========= COMPUTE-SANITIZER
 ========= Barrier error detected. Divergent thread(s) in block.
 =========     at [clone myKernel(int *, int *)] outlineSync()+0x11f0 in test.cu:42
 =========     by thread (32,0,0) in block (0,0,0)
 =========         Device Frame: myKernel(int *, int *)+0xe40 in test.cu:60
 =========
 ========= ERROR SUMMARY: 1 error
"""
INITCHECK = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at vectorAdd(int *)+0x70 in memset_error.cu:41
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
========= Host API memory access error at host access to 0x7f7fcdc01200 of size 400 bytes
=========     Uninitialized access at 0x7f7fcdc01300 on access by cudaMemcpy source
=========
========= ERROR SUMMARY: 2 errors
"""
ENDED = """\
========= COMPUTE-SANITIZER
========= Error: process didn't terminate successfully
=========     The application may have hit an error when dereferencing Unified Memory from the host.
========= Error: Target application terminated before first instrumented API call
"""
CLEAN = "========= COMPUTE-SANITIZER\nall were started\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(("text", "kernels", "faults", "warnings", "others"), [
    (MEMCHECK, ["unaligned_kernel"], ["Invalid __global__ write of size 4 bytes"], 0, 1),
    (MEMCHECK, ["out_of_bounds_kernel"], ["Invalid __global__ write of size 4 bytes"], 0, 1),
    (MEMCHECK, ["aligned_kernel", "of_bounds_kernel"], [], 0, 2),
    (RACECHECK, ["sumKernel"], ["Error: Race reported between Write access at sumKernel(int *, int *)+0x90 in b.cu:41"], 1, 0),
    (SYNCCHECK, ["myKernel"], ["Barrier error detected. Divergent thread(s) in block."], 0, 0),
    (INITCHECK, ["vectorAdd"], ["Uninitialized __global__ memory read of size 4 bytes",
                                "Host API memory access error at host access to 0x7f7fcdc01200 of size 400 bytes"], 0, 0),
    (INITCHECK, ["other"], ["Host API memory access error at host access to 0x7f7fcdc01200 of size 400 bytes"], 0, 1),
    (CLEAN, ["vectorAdd"], [], 0, 0)])
def test_reports_are_those_of_the_kernels_that_they_name(text, kernels, faults, warnings, others):
    said = heard(text, kernels)
    assert said.finished
    assert [fault.splitlines()[0] for fault in said.faults] == faults
    assert (len(said.warnings), said.others) == (warnings, others)


def test_a_tool_that_did_not_come_to_its_end_is_no_clean_run():
    assert not heard(ENDED, ["vectorAdd"]).finished
    assert not heard("", ["vectorAdd"]).finished


def test_it_is_found_beside_the_cuda_toolkit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    tool = tmp_path / "compute-sanitizer" / sanitizing.NAME
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert sanitizing.found() == str(tool)


def test_a_process_that_does_not_end_is_ended(tmp_path):
    tool = tmp_path / sanitizing.NAME
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    with pytest.raises(sanitizing.subprocess.TimeoutExpired):
        sanitizing.watched("memcheck", str(tool), seconds=0.2)


def test_the_launches_are_a_process_that_needs_no_folder_to_be_its_own(tmp_path):
    done = sanitizing.subprocess.run([*sanitizing.launches(), "nothing", "is", "planted"], capture_output=True, text=True,
                                     cwd=tmp_path, check=False)
    assert "main() takes from 0 to 1 positional arguments" in done.stderr


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=ON_GPU) for tool in sanitizing.TOOLS])
def test_no_kernel_is_at_fault(tool):
    text = sanitizing.watched(tool, TOOL)
    said = heard(text, KERNELS)
    assert said.finished, text[-3000:]
    assert "all were started" in text, text[-3000:]
    assert not said.faults, "\n".join(said.faults[:20])
    print(f"{tool}: {len(said.warnings)} warnings, {said.others} reports of other kernels")


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=ON_GPU) for tool in ("memcheck", "initcheck")])
def test_a_planted_fault_is_found(tool):
    text = sanitizing.watched(tool, TOOL, tool)
    assert heard(text, ["beyond_kernel", "unset_kernel"]).faults, text[-3000:]
