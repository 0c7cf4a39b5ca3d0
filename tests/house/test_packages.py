"""What pip installs is what stands on disk: the listed packages are the folders, and the pins cover what is needed."""

from __future__ import annotations

import re
import tomllib

from house.source import PACKAGE_FOLDERS, ROOT, module_name, python_files, text

PROJECT = tomllib.loads(text("pyproject.toml"))


def packages_on_disk(paths: list[str]) -> set[str]:
    """The packages that folders with an __init__.py make."""
    return {module_name(path) for path in paths if path.endswith("/__init__.py")}


def folders_without_init(paths: list[str]) -> set[str]:
    """Folders that hold Python files and no __init__.py, and would therefore be left out of a wheel."""
    return {path.rpartition("/")[0] for path in paths} - {
        path.rpartition("/")[0] for path in paths if path.endswith("/__init__.py")}


def unpinned(needs: list[str], constraints: str) -> set[str]:
    """Requirements whose project has no line `name==version` in a constraints file."""
    def spelled(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {spelled(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==[^\s*]+$", constraints, re.M)}
    return {need for need in needs if spelled(re.match(r"[A-Za-z0-9._-]+", need).group()) not in pinned}


def test_the_listed_packages_are_the_folders():
    listed, found = set(PROJECT["tool"]["setuptools"]["packages"]), packages_on_disk(python_files(*PACKAGE_FOLDERS))
    assert listed == found, (f"[tool.setuptools] packages in pyproject.toml: add {sorted(found - listed)}, "
                             f"remove {sorted(listed - found)}")


def test_every_folder_with_code_is_a_package():
    bare = folders_without_init(python_files(*PACKAGE_FOLDERS))
    assert not bare, f"put an __init__.py into {sorted(bare)} and list the package in pyproject.toml"


def test_every_requirement_is_pinned():
    needs = PROJECT["build-system"]["requires"] + PROJECT["project"]["dependencies"]
    loose = unpinned(needs + PROJECT["project"]["optional-dependencies"]["dev"], text("constraints.txt"))
    assert not loose, f"constraints.txt pins no exact version of {sorted(loose)}"


def test_the_script_has_its_file():
    script = PROJECT["project"]["scripts"]["glmc"]
    assert re.fullmatch(r"glmc\.cli\.main:\w+", script)
    assert (ROOT / "glmc/cli/__init__.py").exists()


def test_planted_violations_are_found():
    paths = ["glmc/__init__.py", "passes/__init__.py", "passes/tidy/x.py"]
    assert packages_on_disk(paths) == {"glmc", "glmc.passes"}
    assert folders_without_init(paths) == {"passes/tidy"}
    assert unpinned(["torch>=2.11", "pytest_xdist>=3", "numpy"], "torch==2.13.0\npytest-xdist==3.8.0\nnumpy>=2") == {
        "numpy"}
