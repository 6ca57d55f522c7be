"""Where Triton's kernels can be tried: on a CUDA device, or by its interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

INSTALLED = find_spec("triton") is not None
CUDA = torch.cuda.is_available()
RUNS = INSTALLED and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
KERNEL = pytest.mark.skipif(not RUNS, reason="no Triton, or neither CUDA nor TRITON_INTERPRET=1")
