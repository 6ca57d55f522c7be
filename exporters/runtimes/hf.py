"""transformers: whether its own classes hold the model, or need the modelling file beside the weights."""

from __future__ import annotations

from exporters.runtimes.shape import Shape
from exporters.runtimes.verdict import Check, Evidence, Runtime, Verdict
from passes.models import AUTO_CLASSES
from passes.models import FILE as MODELLING_FILE

BUILT = "passes/models/stock.py (twin_of): built here without weights, and compared parameter by parameter"
FILE_TESTS = "tests/exporters/test_modelling.py: the file in a process without lpc"


def _stock(shape: Shape, evidence: Evidence) -> Verdict:
    return Verdict(
        target=STOCK.name,
        runs="yes",
        reason=f"{AUTO_CLASSES[shape.task]}.from_pretrained gives a {shape.model_class}, no remote code"
        + ("; reloaded bit for bit" if evidence.saved else "; not reloaded here"),
        source="parity 'save'" if evidence.saved else BUILT,
        run_here=evidence.saved,
    )


def _why_no_file(shape: Shape, evidence: Evidence) -> str | None:
    if shape.not_stock is None or shape.needs_file:
        return None
    return f"the checkpoint carries no modelling file: {shape.not_stock}; load it with your own class"


def _with_file(shape: Shape, evidence: Evidence) -> Verdict:
    if shape.not_stock is None:
        return Verdict(
            target=WITH_FILE.name,
            runs="yes",
            reason="the same as without trust_remote_code: the stock class builds all parameters",
            source=BUILT,
        )
    return Verdict(
        target=WITH_FILE.name,
        runs="with file",
        reason=f"{MODELLING_FILE} beside the weights builds {shape.model_class} with torch and transformers alone",
        source=FILE_TESTS,
    )


STOCK = Runtime(
    name="transformers",
    meaning="`from_pretrained` of the auto class, without remote code",
    checks=(
        Check(
            needs="the auto class's stock class builds exactly the model's parameters from `config.json`",
            source=BUILT,
            why_not=lambda shape, _: shape.not_stock,
            run_here=True,
        ),
    ),
    passed=_stock,
)

WITH_FILE = Runtime(
    name="transformers, trust_remote_code",
    meaning="the same with `trust_remote_code=True`, which runs the modelling file if there is one",
    checks=(
        Check(
            needs="a stock class, or the modelling file beside the weights",
            source="exporters/hf/modelling.py",
            why_not=_why_no_file,
        ),
    ),
    passed=_with_file,
)
