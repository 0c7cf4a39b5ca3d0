"""Ranks on two hosts: the answer is that of one rank, and a link that is cut ends the run. The hosts are network namespaces.

    python bench/hosts.py TEXT.glmc [--pictures PICTURES.glmc]      as root, with iproute2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
from PIL import Image
from report import Report, default_out

DEADLINE = 10
LATER = 2
"""Seconds beyond the deadline by which every rank must have ended."""
TORCHRUN = Path(sys.executable).with_name("torchrun")
HOW = ("two network namespaces joined by a pair of virtual interfaces, torchrun with --nnodes 2 in each; the answer beside "
       "that of `glmc run` alone. Cut: one end of the pair is taken down once rank 0 has printed something; seconds until the "
       "run of each host has ended, of which the deadline is {} s. torchrun looks every 0.1 s and is given 1 s more")


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def host(number: int) -> str:
    return f"glmc-host-{number}"


def make_hosts() -> None:
    """Hosts 1 and 2 at 10.77.0.1 and 10.77.0.2."""
    for number in (1, 2):
        ip("netns", "del", host(number), check=False)
        ip("netns", "add", host(number))
    ip("link", "add", "to1", "netns", host(1), "type", "veth", "peer", "name", "to2", "netns", host(2))
    for number in (1, 2):
        ip("-n", host(number), "addr", "add", f"10.77.0.{number}/24", "dev", f"to{number}")
        for device in (f"to{number}", "lo"):
            ip("-n", host(number), "link", "set", device, "up")


def start(number: int, ranks: int, port: int, words: list[str], log: Path) -> subprocess.Popen:
    """Host `number`'s share of a run of `ranks` ranks a host."""
    told = ["--nnodes", "2", "--node-rank", str(number - 1), "--nproc-per-node", str(ranks), "--master-addr", "10.77.0.1",
            "--master-port", str(port), "--monitor-interval", "0.1", "-m", "glmc.runtime", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"to{number}", "GLMC_DEADLINE": str(DEADLINE)}
    with log.open("wb") as file:
        return subprocess.Popen(["ip", "netns", "exec", host(number), str(TORCHRUN), *told], stdout=file,
                                stderr=subprocess.STDOUT, env=environment)


def both(ranks: int, port: int, words: list[str], folder: Path) -> tuple[list[int], str]:
    """(exit codes, what host 1 printed)."""
    logs = [folder / f"{port}-{number}" for number in (1, 2)]
    runs = [start(number, ranks, port, words, log) for number, log in zip((1, 2), logs, strict=True)]
    codes = [run.wait(300) for run in runs]
    if any(codes):
        sys.stderr.write("".join(log.read_text() for log in logs))
    return codes, logs[0].read_text()


def cut(port: int, words: list[str], folder: Path) -> tuple[list[float], list[int], list[str]]:
    """Seconds from the cut to the end of each host's run, exit codes, and what each said."""
    logs = [folder / f"{port}-{number}" for number in (1, 2)]
    runs = [start(number, 1, port, words, log) for number, log in zip((1, 2), logs, strict=True)]
    while not any(line and "socket.cpp" not in line for line in logs[0].read_text().splitlines()):
        if runs[0].poll() is not None:
            raise SystemExit(f"the run ended before the cut:\n{logs[0].read_text()}")
        time.sleep(0.05)
    ip("-n", host(2), "link", "set", "to2", "down")
    began, ends = time.monotonic(), [0.0, 0.0]
    while not all(ends) and time.monotonic() < began + 120:
        for number, run in enumerate(runs):
            if not ends[number] and run.poll() is not None:
                ends[number] = time.monotonic() - began
        time.sleep(0.02)
    said = [next((line for line in log.read_text().splitlines() if line.startswith("error:")), "") for log in logs]
    for run in runs:
        run.kill()
    return [end or 120.0 for end in ends], [run.wait() for run in runs], said


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("artifact", type=Path, help="a small artefact that makes text, of which two ranks can have shares")
    options.add_argument("--pictures", type=Path, help="one that makes pictures")
    options.add_argument("--out", type=Path, default=default_out("hosts"))
    given = options.parse_args()
    report = Report("hosts", given.out)
    make_hosts()
    ask = [str(given.artifact), "--raw", "--prompt", "The sea", "--max-new-tokens", "40"]
    alone = subprocess.run([sys.executable, "-m", "glmc", "run", *ask], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as place:
        folder = Path(place)
        codes, printed = both(1, 29601, ask, folder)
        report.add("text of 2 hosts of one rank is that of one rank", int(codes == [0, 0] and alone.strip() in printed), "", 1,
                   "equal")
        if given.pictures:
            ask_picture = [str(given.pictures), "--prompt", "a sign", "--size", "64x128", "--steps", "2", "--seed", "3", "-o"]
            pictures = [folder / "alone.png", folder / "hosts.png"]
            run = [sys.executable, "-m", "glmc", "run"]
            subprocess.run([*run, *ask_picture, str(pictures[0])], check=True, capture_output=True)
            codes = both(2, 29602, [*ask_picture, str(pictures[1])], folder)[0]
            one, other = (numpy.asarray(Image.open(file), "int16") if file.exists() else None for file in pictures)
            apart = 255 if codes != [0, 0] or other is None else int(abs(one - other).max())
            report.add("picture of 2 hosts of two ranks beside that of one rank: most that a pixel differs", apart, "of 255", 1)
        seconds, codes, said = cut(29603, [*ask[:-1], "100000"], folder)
    for number, end in enumerate(seconds, 1):
        report.add(f"link cut: host {number} ended after", end, "s", DEADLINE + LATER + 1)
    report.add("link cut: hosts whose run failed", sum(code != 0 for code in codes), "", 2, "equal")
    silent = sum("fell silent" in one or "has gone" in one for one in said)
    report.add("link cut: hosts that named the rank that fell silent", silent, "", 2, "equal")
    report.finish(HOW.format(DEADLINE), {"said": said})


if __name__ == "__main__":
    main()
