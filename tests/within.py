"""Every load and store of interpreted Triton kernels looked at: one that leaves the tensors of its launch fails the test."""

from __future__ import annotations

import torch
from triton.runtime import interpreter

from glmc.kernels import triton


def watch(monkeypatch) -> list[int]:
    """From now on accesses are looked at, by their address, used or not. Their count so far, in a list."""
    bounds, builder = [], interpreter.interpreter_builder
    load, store, started = builder.create_masked_load, builder.create_masked_store, triton._interpreted
    seen = [0]

    def within(pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        for place in pointers.data[mask.data.astype(bool)].ravel():
            seen[0] += 1
            assert any(low <= place and place + size <= high for low, high in bounds), "a kernel leaves its tensors"

    def checked_load(ptrs, mask, *rest, **more):
        within(ptrs, mask)
        return load(ptrs, mask, *rest, **more)

    def checked_store(ptrs, value, mask, *rest, **more):
        within(ptrs, mask)
        return store(ptrs, value, mask, *rest, **more)

    class Noted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def call(*arguments, **constants):
                bounds[:] = [(t.untyped_storage().data_ptr(), t.untyped_storage().data_ptr() + t.untyped_storage().nbytes())
                             for t in arguments if isinstance(t, torch.Tensor)]
                self.kernel[grid](*arguments, **constants)

            return call

        def __call__(self, *arguments, **constants):
            return self.kernel(*arguments, **constants)

    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)
    monkeypatch.setattr(triton, "_interpreted", lambda kernel: Noted(started(kernel)))
    return seen
