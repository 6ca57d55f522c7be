"""Doctor: what of this machine and installation lpc would use, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lpc.versions import versions

NEEDED = ("torch", "transformers", "peft", "safetensors", "onnx", "onnxruntime", "accelerate", "datasets")
WANTED = {
    "onnxruntime_genai": "greedy tokens of an ONNX package are compared, and lm-eval's backend genai runs",
    "lm_eval": "lpc evaluate",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device that torch sees; ``memory_bytes`` is all of its memory (0: it shares the machine's)."""

    name: str
    what: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """``missing``: what is not there, by name, with what it is for. ``auto`` is the device that runs take by default.

    ``environment`` are the settings of threads that are set; bytes are of memory and of the disk of this folder.
    """

    versions: dict[str, str]
    system: str
    cores: int
    usable_cores: int
    threads: int
    environment: dict[str, str]
    memory_bytes: int
    free_disk_bytes: int
    devices: tuple[Device, ...]
    auto: str
    providers: tuple[str, ...]
    missing: dict[str, str]

    @property
    def is_well(self) -> bool:
        """Whether nothing is missing that lpc cannot do without."""
        return not set(self.missing) & set(NEEDED)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "is_well": self.is_well}


def doctor() -> Diagnosis:
    """Look at the machine and the installation; nothing is changed, and the network is not asked."""
    missing = {name: "lpc needs it" for name in NEEDED if find_spec(name) is None}
    missing |= {name: why for name, why in WANTED.items() if find_spec(name) is None}
    devices, auto, threads = _devices(missing)
    cores = os.cpu_count() or 1
    return Diagnosis(
        versions=versions(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=cores,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        threads=threads,
        environment={name: os.environ[name] for name in THREADS if name in os.environ},
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        devices=devices,
        auto=auto,
        providers=_providers(missing),
        missing=missing,
    )


def _devices(missing: dict[str, str]) -> tuple[tuple[Device, ...], str, int]:
    if "torch" in missing:
        return (), "none", 0
    import torch

    from passes.pipeline import device_named

    found = [Device(name="cpu", what=platform.processor() or platform.machine(), memory_bytes=0)]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        found.append(Device(name=f"cuda:{number}", what=facts.name, memory_bytes=facts.total_memory))
    if torch.mps.is_available():
        found.append(Device(name="mps", what="Apple GPU", memory_bytes=0))
    return tuple(found), str(device_named("auto")), torch.get_num_threads()


def _providers(missing: dict[str, str]) -> tuple[str, ...]:
    if "onnxruntime" in missing:
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())
