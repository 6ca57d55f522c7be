"""What a user can ask of the exporters: one declaration an option, checked without torch."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options import Names, check, option

MAX_OPSET = 23

EXPORTER_NAMES = Names(("hf", "onnx"), "lpc.exporters")
PRECISION_NAMES = Names(("float32", "float16"), "lpc.precisions")

DEFAULT_EXPORTS = ("hf", "onnx")


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
    dtype: str = option(
        "float32",
        noun="ONNX dtype",
        choices=PRECISION_NAMES.known,
        help="The precision of the graph; float32 is the right one on CPU.",
    )
    route: str = option(
        "auto",
        noun="ONNX route",
        choices=("auto", "builder", "torch"),
        help="builder writes the graph from the weights, for the families that it knows; torch traces the model with "
        "torch.onnx.export; auto takes the builder where it knows the model, else torch.",
    )
    greedy_prompts: int = option(
        3,
        least=0,
        help="Probe prompts that GenAI (or the two graphs of an encoder-decoder) must continue as generate does; 0 "
        "leaves that check out.",
    )
    greedy_tokens: int = option(12, least=1, help="Tokens a probe prompt.")

    def __post_init__(self) -> None:
        check(self)
