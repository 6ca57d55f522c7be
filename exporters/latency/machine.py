"""The machine that times are measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Machine:
    """The processor's name, its cores, and the bytes of its last-level cache."""

    processor: str
    cores: int
    cache_bytes: int

    @classmethod
    def here(cls) -> Machine:
        """This machine; a cache whose size the system does not say is taken for 32 MiB."""
        return cls(processor(), os.cpu_count() or 1, cache_bytes())


def processor() -> str:
    """The processor's name."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_bytes() -> int:
    """Bytes of the largest cache of the first core."""
    sizes = [path.read_text(encoding="ascii").strip() for path in CACHES.glob("index*/size")]
    factors = {"K": 2**10, "M": 2**20}
    known = [int(size[:-1]) * factors[size[-1]] for size in sizes if size[-1:] in factors and size[:-1].isdigit()]
    return max(known, default=UNKNOWN_CACHE_BYTES)
