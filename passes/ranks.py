"""Several processes at one run: which of them this is, sums over all of them, and one decision for all.

A launcher (torchrun, ``accelerate launch``) starts the same command several times and says so in ``RANK`` and
``WORLD_SIZE``; ``join`` makes one group of them. Rank 0 decides and writes. Where there is one process, every function
here returns what it was given.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from passes.errors import OptionError, RankError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long ranks wait for what one of them does alone, such as an export; one that dies is noticed at once."""

REACH = timedelta(seconds=20)
"""How long a process that ends with an error looks for the others, so that one of them tells it."""

_alone = ContextVar("alone", default=False)

_control: list[tuple[Any, Any]] = []
"""The group of all ranks, and the one of the same ranks that speaks on the CPU and is as patient as ``PATIENCE``."""


def launched() -> tuple[int, int]:
    """Which process this is, and of how many, as a launcher says; (0, 1) where there is none."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    return (int(os.environ.get("RANK") or 0), count) if count > 1 else (0, 1)


def count() -> int:
    """How many processes are at this run together; 1 until they have joined, and inside ``on_first``."""
    from torch import distributed

    if _alone.get():
        return 1

    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def rank() -> int:
    """Which of them this is."""
    from torch import distributed

    return distributed.get_rank() if count() > 1 else 0


def local_rank() -> int:
    """Which of the processes of this machine this is, as the launcher says: the number of its device."""
    return int(os.environ.get("LOCAL_RANK") or 0) if launched()[1] > 1 else 0


def sharded() -> bool:
    """Whether training will shard the weights over the ranks (FSDP2), as ``accelerate launch`` says."""
    return launched()[1] > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _check_engine() -> None:
    """Raise OptionError for an engine of ``accelerate launch`` under which nothing was ever run."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise OptionError("training under DeepSpeed was never tried: launch with FSDP2 or, for DDP, without either")
    if sharded() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise OptionError("of FSDP only the second is known: launch with fsdp_version 2 (--fsdp_version 2)")


def join(device: torch.device) -> None:
    """Make one group of all processes that were launched together, for a run on this kind of device.

    A group that is there already is taken. Where there is one process and several CUDA devices, a warning says that one
    of them is used. Raises OptionError if a launcher did not say where the others are or asks for DeepSpeed or FSDP1,
    or a group is there of which the environment, by which the Trainer finds it, says nothing.
    """
    import torch
    from torch import distributed

    if launched()[1] == 1:
        if count() > 1:
            raise OptionError(
                f"there is a process group of {count()}, and no RANK, WORLD_SIZE and LOCAL_RANK by which training "
                "would find it: start the script with torchrun"
            )
        if device == torch.device("cuda") and torch.cuda.device_count() > 1:
            logger.warning("one of %d CUDA devices is used: start with torchrun for all", torch.cuda.device_count())
        return
    _check_engine()
    if not distributed.is_initialized():
        missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise OptionError(
                f"WORLD_SIZE is {launched()[1]} and {missing[0]} is not set: start with torchrun or accelerate launch"
            )
        distributed.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        atexit.register(leave)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _channel()


def leave() -> None:
    """Dissolve the group that ``join`` made, when the process ends."""
    from torch import distributed

    _control.clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _channel() -> Any:
    """The patient group on the CPU; made by all ranks together when it is first needed."""
    from torch import distributed

    whole = distributed.group.WORLD
    if not _control or _control[0][0] is not whole:
        _control[:] = [(whole, distributed.new_group(backend="gloo", timeout=PATIENCE))]
    return _control[0][1]


def _group_for(tensor: torch.Tensor) -> Any:
    """The group that carries a tensor: of the ranks' own backend on a device, else the patient one."""
    return _channel() if tensor.device.type == "cpu" else None


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' tensors, in place."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(tensor, group=_group_for(tensor))
    return tensor


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of all ranks' tensors, in place."""
    return sum_over_ranks(tensor).div_(count()) if count() > 1 else tensor


def least_over_ranks(value: int) -> int:
    """The least of all ranks' numbers."""
    return min(told_by_all(value))


def from_first(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rank 0's tensors, on all ranks; each rank gives some of the same names, shapes and dtypes."""
    if count() == 1:
        return dict(tensors)
    import torch
    from torch import distributed

    found = {}
    for name, tensor in tensors.items():
        sent = (tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor).detach().contiguous().clone()
        distributed.broadcast(sent, 0, group=_group_for(sent))
        found[name] = sent.to(tensor.dtype)
    return found


def told_by_all(value: T) -> list[T]:
    """What each rank says, by rank: plain values, as JSON."""
    if count() == 1:
        return [value]
    import torch
    from torch import distributed

    said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    distributed.all_gather(lengths, torch.tensor([len(said)]), group=_channel())
    longest = max(int(length) for length in lengths)
    found = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    distributed.all_gather(found, torch.nn.functional.pad(said, (0, longest - len(said))), group=_channel())
    return [json.loads(bytes(each[: int(n)].tolist())) for each, n in zip(found, lengths, strict=True)]


def told_by_first(value: T) -> T:
    """What rank 0 says, on all ranks: a plain value."""
    return told_by_all(value if rank() == 0 else None)[0] if count() > 1 else value  # type: ignore[return-value]


@contextmanager
def together() -> Iterator[None]:
    """Work that every rank does by itself, without a word to the others, such as reading files.

    An error on one of them is RankError on all others, when these are done. An interruption is told to none.
    """
    try:
        yield
    except Exception as error:
        told_by_all([type(error).__name__, str(error)])
        raise
    for number, (kind, message) in enumerate(told_by_all(["", ""])):
        if kind:
            failed = RankError(f"process {number} of {count()} failed: {kind}: {message}")
            failed.kind = kind
            raise failed


def on_first(work: Callable[[], T]) -> T | None:
    """Have rank 0 alone do something while the others wait, and then get None. An error is RankError on these."""
    result = None
    with together():
        if rank() == 0:
            token = _alone.set(True)
            try:
                result = work()
            finally:
                _alone.reset(token)
    return result


@dataclass(frozen=True)
class Share(Generic[T]):
    """This rank's part of what all ranks look at: ``mine``, among how many ``ranks`` the whole is shared, and how many
    items each of them has at most.
    """

    mine: Sequence[T]
    ranks: int
    rounds: int

    @classmethod
    def of(cls, whole: Sequence[T]) -> Share[T]:
        """Every n-th of the items; where there are fewer than ranks each rank has all, and nothing is shared."""
        if len(whole) < count():
            return cls(whole, 1, len(whole))
        return cls(whole[rank() :: count()], count(), -(-len(whole) // count()))

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """The sums of numbers over the ranks that share, the same on all of them."""
        every = told_by_all(list(numbers)) if count() > 1 else [list(numbers)]
        told = every if self.ranks > 1 else every[:1]
        return tuple(sum(column) for column in zip(*told, strict=True))

    def told(self, of_mine: Iterator[Any]) -> Iterator[Any]:
        """What each rank finds of its items, plain values, in the order of the whole; the same on all ranks.

        ``of_mine`` is asked for one item at a time, and no further than the answers are.
        """
        for _ in range(self.rounds):
            own = next(of_mine, None)
            yield from (each for each in (told_by_all(own) if self.ranks > 1 else [own]) if each is not None)


def is_first_to_tell() -> bool:
    """Whether this process, which ends with an error, is the first of its run to do so, and is to tell it.

    Before the processes have joined it goes by the launcher's own store; where that cannot be reached, each one tells.
    """
    if launched()[1] == 1:
        return True
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=REACH)))
        return bool(store.add("lpc/told", 1) == 1)
    except (RuntimeError, ValueError):
        return True
