"""From a device to the host: once for many tensors, since each copy waits for all that was asked of the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of one dtype on the CPU, in order; a single copy for each device that they are on."""
    together: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        together.setdefault(tensor.device, []).append(name)
    found: dict[str, torch.Tensor] = {}
    for names in together.values():
        flat = torch.cat([tensors[name].flatten() for name in names]).cpu()
        parts = torch.split(flat, [tensors[name].numel() for name in names])
        found |= {name: part.view(tensors[name].shape) for name, part in zip(names, parts, strict=True)}
    return {name: found[name] for name in tensors}
