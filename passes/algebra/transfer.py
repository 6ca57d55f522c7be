"""From a device to the host: many tensors at once, since a copy waits for all that was asked of it before; or later."""

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


class Answer:
    """A yes or no, [] bool, on its way to the host; ``bool`` waits for it, not for what the device was asked since."""

    def __init__(self, value: bool | torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if isinstance(value, torch.Tensor) and value.is_cuda:
            stream = torch.cuda.current_stream(value.device)
            value = value.to("cpu", non_blocking=True)
            self._event = stream.record_event()
        self._value = value

    @property
    def ready(self) -> bool:
        """Whether it is there, so that nobody has to wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)
