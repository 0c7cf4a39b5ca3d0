"""How ranks find each other: a file that all can open, or the address that torchrun gives; and who has not come.

Nothing listens on all interfaces. On one host gloo listens on the loopback address alone. On several it listens where a host's
name resolves to, or on GLOO_SOCKET_IFNAME, which is for whoever starts them to say.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from glmc.errors import RankError, UsageError
from glmc.runtime.rank_fault import RankFault
from glmc.runtime.within import within

LOOPBACK = "127.0.0.1"
_LOOK = 0.02


@dataclass(frozen=True)
class Meeting:
    """What `meet` gives. store: torch.distributed's; run: 16 bytes that all ranks of this run share; local: one host only."""

    rank: int
    size: int
    store: Any
    run: bytes
    local: bool


def place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, size) from RANK and WORLD_SIZE. Raises UsageError."""
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except (KeyError, ValueError) as fault:
        raise UsageError("a rank does not know its place", field="RANK, WORLD_SIZE", found=fault,
                         hint="start it by `glmc run --ranks N`, or by torchrun") from None
    if not 0 <= rank < size <= 1 << 12:
        raise UsageError("a rank's place is out of range", field="RANK, WORLD_SIZE", found=f"{rank} of {size}")
    return rank, size


def meet(deadline: float, file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Wait until all ranks are here, by `file` or by MASTER_ADDR and MASTER_PORT. Raises RankError that names the missing."""
    rank, size = place(environment)
    if not 0 < deadline <= 86400:
        raise UsageError("the deadline is out of range", field="deadline", expected="up to 86400 seconds", found=deadline)
    wait = timedelta(seconds=deadline)
    try:
        store = dist.FileStore(str(file), size) if file else _by_address(rank, size, wait, environment)
        store.set_timeout(wait)
        if rank == 0:
            store.set("run", secrets.token_bytes(16).hex())
        store.set(f"here/{rank}", "1")
    except RuntimeError as fault:
        raise RankError("the ranks' meeting place cannot be opened", found=fault) from fault
    ends = time.monotonic() + deadline
    while missing := _missing(store, size, ends):
        if time.monotonic() > ends:
            raise RankFault(f"did not come within the deadline of {deadline:g} s", ranks=tuple(missing), stage="start").error()
        time.sleep(_LOOK)
    local = file is not None or environment.get("LOCAL_WORLD_SIZE") == str(size)
    return Meeting(rank, size, store, bytes.fromhex(store.get("run").decode()), local)


def _missing(store: Any, size: int, ends: float) -> list[int]:
    """The ranks that are not here. Raises RankError where the meeting place does not answer before `ends`."""
    try:
        return within(ends + 1 - time.monotonic(), lambda: [i for i in range(size) if not store.check([f"here/{i}"])])
    except (RuntimeError, TimeoutError) as fault:
        raise RankError("the ranks' meeting place has gone", found=fault) from fault


def _by_address(rank: int, size: int, wait: timedelta, environment: Mapping[str, str]) -> Any:
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise UsageError("the ranks have no address to meet at", field="MASTER_ADDR, MASTER_PORT", found=f"{host}:{port}")
    if rank or environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself holds the store
        store = dist.TCPStore(host, int(port), None, False, wait)
    else:
        listener = socket.create_server((host, int(port)))  # by itself TCPStore would listen on all interfaces
        store = dist.TCPStore(host, int(port), None, True, wait, wait_for_workers=False, master_listen_fd=listener.detach())
    return dist.PrefixStore("glmc/" + environment.get("TORCHELASTIC_RUN_ID", ""), store)


def gloo(meeting: Meeting, name: str, rank: int, size: int, deadline: float) -> Any:
    """A gloo group called `name` of which this is rank `rank` of `size`. Raises RankError."""
    store = dist.PrefixStore(name, meeting.store)
    try:
        if not meeting.local:
            return dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=deadline))
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=deadline)
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
        return dist.ProcessGroupGloo(store, rank, size, options)
    except RuntimeError as fault:
        raise RankError("the ranks cannot connect with each other", field=name, found=fault) from fault
