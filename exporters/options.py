"""What a user can ask of the exporters: one declaration an option, checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from passes.errors import OptionError
from passes.options import AUTO, Group, Names, check, names_in, option

MAX_OPSET = 23

EXPORTER_NAMES = Names(("hf", "onnx", "triton"), "lpc.exporters")
PRECISION_NAMES = Names(("fp32", "fp16", "bf16", "fp16-weights", "int8", "int8-dynamic", "int4"), "lpc.precisions")

DEFAULT_EXPORTS = ("hf", "onnx")
OF_ONNX = ("onnx", "triton")
"""The exporters whose options are ``OnnxOptions``."""
PLAIN, GROUP_QUERY = "plain", "gqa"
"""The two ways in which a decoder's graph says attention."""

CALIBRATED = "int4"
"""The precision whose codes a calibration text can choose."""


class IdRows(Protocol):
    """Rows whose ``input_ids`` are token ids (tokens,), such as those that a language model is tuned on."""

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One of them."""


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How the ONNX package is made (docs/onnx.md)."""

    opset: int = option(
        MAX_OPSET,
        noun="ONNX opset",
        least=MAX_OPSET,
        most=MAX_OPSET,
        hint="it has Attention and RMSNormalization, and is where torch's exporter ends",
        help="The ONNX opset: the one that measured best.",
    )
    precision: tuple[str, ...] = option(
        (AUTO,),
        choices=lambda: (AUTO, *PRECISION_NAMES.known()),
        help="How weights are stored and computed with; auto keeps what the source is stored in. Of several each has a "
        "folder of its own.",
        group=Group.OUTPUT,
        common=True,
        metavar="NAME,...",
        words=str,
        read=names_in,
    )
    block: int = option(
        32,
        least=16,
        most=256,
        help="int4 and int8: weights that share a scale; 16, 32, 64, 128 or 256.",
        group=Group.OUTPUT,
    )
    symmetric: bool = option(True, help="int4 and int8 without zero points: smaller, and on SmolLM2 no worse.")
    rounding: str = option(
        AUTO,
        choices=(AUTO, "nearest", "search"),
        help="int4 and int8: the nearest code in a block's whole range, or in the range with the least squared error; "
        "auto: GPTQ's for int4 where there is text (that of lpc compress, or --calibration), else the nearest.",
        group=Group.OUTPUT,
    )
    calibration: Path | None = option(
        None,
        help="int4 of a causal language model: a text on which GPTQ chooses codes; lpc compress takes its own data.",
        group=Group.OUTPUT,
        metavar="FILE",
    )
    head: str = option(
        "int8",
        choices=("int4", "int8", "float"),
        help="How int4 stores the head, and the embedding that it is tied to.",
        group=Group.OUTPUT,
    )
    embedding: str | None = option(
        None, choices=("int4", "int8", "float"), help="How int4 stores the embedding; by default as the head."
    )
    route: str = option(
        "auto",
        noun="ONNX route",
        choices=("auto", "builder", "torch"),
        help="builder writes the graph from the weights, for the families that it knows; torch traces the model with "
        "torch.onnx.export; auto takes the builder where it knows the model, else torch.",
    )
    attention: str = option(
        AUTO,
        noun="ONNX attention",
        choices=(AUTO, PLAIN, GROUP_QUERY),
        help="gqa has onnxruntime's GroupQueryAttention, whose cache GenAI writes in place; plain has opset 23's "
        "Attention, for any runtime; auto takes gqa where it can say the model.",
        group=Group.OUTPUT,
    )
    pooling: bool = option(
        False,
        help="Of an embedding model the graph gives sentence_embedding, pooled inside, in place of last_hidden_state.",
        group=Group.OUTPUT,
        flag="--onnx-pooling",
    )
    greedy_prompts: int = option(
        3,
        least=0,
        help="Probe prompts that GenAI (or the two graphs of an encoder-decoder) must continue as generate does; 0 "
        "leaves that check out.",
    )
    greedy_tokens: int = option(12, least=1, help="Tokens a probe prompt.")
    rows: IdRows | None = option(
        None,
        record=False,
        hash=False,
        help="Instead of a calibration text, where none is given: what lpc.compress tuned on, which says so.",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.block & (self.block - 1):
            raise OptionError(f"block must be a power of two from 16 to 256, got {self.block}")
        if self.calibration is not None and CALIBRATED not in self.precision:
            raise OptionError(f"calibration {self.calibration} is for int4: ask for precision int4, or leave it out")
        if self.calibration is not None and self.rounding != AUTO:
            raise OptionError(
                f"calibration {self.calibration} has GPTQ choose codes, not rounding {self.rounding!r}: leave one out"
            )
        if not self.precision or len(set(self.precision)) < len(self.precision):
            raise OptionError(f"name each precision once, and at least one: got {', '.join(self.precision) or 'none'}")
