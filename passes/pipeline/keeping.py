"""The process as the caller left it: random states, default dtype and precision flags, put back after a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def caller_state_kept() -> Iterator[None]:
    """Whatever happens inside the block, Python's, NumPy's and torch's global state is afterwards as it was before.

    Also a decorator. Kept are the random states (of every CUDA device in use as well), the default dtype, whether
    gradients are on, inference mode and autocast (which are off inside), deterministic algorithms, and the precision of
    matrix products (TF32).
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if started else None
    dtype, grad, precision = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with ExitStack() as off:
            off.enter_context(torch.inference_mode(False))  # what is trained and traced in it has no gradients
            for device in ("cpu", "cuda"):  # in which proofs would compare roundings
                if torch.is_autocast_enabled(device):
                    off.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        torch.use_deterministic_algorithms(strict, warn_only=warn)
