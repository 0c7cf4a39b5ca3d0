"""Targets by name, and by kind where the kind has one."""

from __future__ import annotations

import sys

import pytest

from glmc.errors import UnknownName, UnsupportedTarget
from glmc.target import TARGETS, compilable, named


@pytest.mark.parametrize(("name", "full"), [*((n, n) for n in TARGETS), ("npu", "npu:ascend910b"), ("rocm", "rocm:gfx942")])
def test_a_name_or_the_only_one_of_a_kind(name, full):
    assert named(name).name == full


@pytest.mark.parametrize(("name", "said"), [
    ("cuda", "cuda:sm_80, cuda:sm_90, cuda:sm_100"), ("cuda:sm_91", "cpu, cpu:aoti, fx"), ("", "cpu"), ("npu:", "cpu"),
    ("llvm-cpu", "cpu")])
def test_what_is_no_target_is_told_with_what_is(name, said):
    with pytest.raises(UnknownName) as fault:
        named(name)
    assert fault.value.expected.startswith(said)


@pytest.mark.parametrize(("target", "package"), [(name, package) for name, t in TARGETS.items() for package in t.packages])
def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch, target, package):
    assert compilable(target) is TARGETS[target]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedTarget, match=rf"expected: {package}\n.*pip install 'glmc\[{TARGETS[target].extra}\]'"):
        compilable(target)
