"""Compiles the kernel of ``passes.algebra.triton_sums`` for a CUDA device that need not be there: prints shared bytes.

python compiled_kernel.py CAPABILITY DTYPE PRECISION
"""

from __future__ import annotations

import sys

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from passes.algebra import triton_sums


def shared_bytes(capability: int, dtype: str, precision: str) -> int:
    constants = {"rank": 32, "tiles": 8, "square": True, "quadratic": True, "precision": precision}
    constants |= {"tall": triton_sums.TALL, "wide": triton_sums.WIDE, "deep": 32}
    kinds = {"weight": f"*{dtype}", "scaling": "fp32", **dict.fromkeys(constants, "constexpr")}
    pointers = ("left", "right", "grad_left", "grad_right", "row_parts", "column_parts")
    kinds |= dict.fromkeys(pointers, "*fp32")
    kernel = triton_sums._kernel
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    options = {"num_warps": 4, "num_stages": 2}
    return int(compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared)


if __name__ == "__main__":
    sys.stdout.write(str(shared_bytes(int(sys.argv[1]), *sys.argv[2:])))
