"""The runtimes of the ONNX package: onnxruntime and GenAI as verified at the export, and who else reads that folder."""

from __future__ import annotations

from dataclasses import replace

from exporters.runtimes.shape import Shape
from exporters.runtimes.verdict import Check, Evidence, Runtime, Verdict
from passes.models import Parity, Task

GREEDY = "genai greedy tokens"
"""The parity of ``exporters.onnx.genai.verify_greedy``."""

PACKAGE = "exporters/onnx/export_pass.py"
FIRST_WITH_OPSET_23 = "1.23"
"""The first onnxruntime with a CPU kernel of Attention-23: microsoft/onnxruntime#25156, labelled release:1.23.0."""

DECODERS_ONLY = "the package is no decoder with a cache, but {kind}"


def _no_package(shape: Shape, evidence: Evidence) -> str | None:
    return None if evidence.export is not None else "no ONNX package was made"


def _no_decoder(shape: Shape, evidence: Evidence) -> str | None:
    if evidence.export is None or evidence.export.kind == "decoder":
        return None
    return evidence.export.no_genai or DECODERS_ONLY.format(kind=evidence.export.kind)


def _refused_by_genai(shape: Shape, evidence: Evidence) -> str | None:
    return evidence.export.no_genai if evidence.export is not None else None


def _greedy(evidence: Evidence) -> list[Parity]:
    """The comparisons of greedy tokens, of each precision where there are several packages."""
    return [parity for parity in evidence.parity if parity.name.rpartition(": ")[2] == GREEDY]


def _no_greedy(shape: Shape, evidence: Evidence) -> str | None:
    found = _greedy(evidence)
    met = bool(found) and all(parity.holds for parity in found)
    return None if met else "the greedy tokens were not compared (greedy_prompts=0)"


HAS_PACKAGE = Check(
    needs="an ONNX package (`onnx/`)",
    source=PACKAGE,
    why_not=_no_package,
    otherwise="unverified",
)
IS_DECODER = Check(needs="a causal language model", source="exporters/onnx/export.py", why_not=_no_decoder)
GENAI_RUNS_IT = Check(
    needs="GenAI loads and runs the graph",
    source="exporters/onnx/genai.py: GenAI's own message at the export",
    why_not=_refused_by_genai,
    run_here=True,
)
GENAI_TAKES_IT = replace(GENAI_RUNS_IT, run_here=False)
"""The same for who runs the folder through GenAI."""
SAME_TOKENS = Check(
    needs="greedy tokens equal to `generate`",
    source=f"parity {GREEDY!r}",
    why_not=_no_greedy,
    otherwise="unverified",
)


def _onnxruntime(shape: Shape, evidence: Evidence) -> Verdict:
    assert evidence.export is not None
    greedy = _greedy(evidence)
    graphs: list[Parity] = [parity for parity in evidence.parity if parity not in greedy]
    worst = max((parity.value for parity in graphs), default=0.0)
    if not graphs or not all(parity.holds for parity in graphs):
        return Verdict(target=ONNXRUNTIME.name, runs="unverified", reason="no parity was measured", source=PACKAGE)
    return Verdict(
        target=ONNXRUNTIME.name,
        runs="yes",
        reason=f"{len(graphs)} comparisons with torch on the CPU provider, the largest difference {worst:.1e}",
        source="parities 'onnx ...'",
        run_here=True,
    )


def _genai(shape: Shape, evidence: Evidence) -> Verdict:
    tied = any(parity.value > 0 for parity in _greedy(evidence))
    but = ", but for ties within rounding" if tied else ""
    return Verdict(
        target=GENAI.name,
        runs="yes",
        reason=f"greedy tokens equal to generate on the CPU provider{but}",
        source=f"parity {GREEDY!r}",
        run_here=True,
    )


def _lm_eval(shape: Shape, evidence: Evidence) -> Verdict:
    return Verdict(
        target=LM_EVAL.name,
        runs="yes",
        reason="reads the folder that GenAI was verified on, through GenAI; lpc evaluate runs it",
        source="EleutherAI/lm-evaluation-harness#3960",
    )


def _uneven_cache(shape: Shape, evidence: Evidence) -> str | None:
    if len(set(shape.kv_heads)) > 1 or shape.removed:
        return "its first cache is built from one number of KV heads, and the layers have several"
    return None


def _derived_head_dim(shape: Shape, evidence: Evidence) -> str | None:
    if shape.square:
        return None
    return (
        f"its first cache has heads of hidden_size // num_attention_heads = {shape.hidden_size // shape.heads[0]} "
        f"values, the model's have {shape.head_dim}"
    )


OPTIMUM_DECODER = "huggingface/optimum-onnx optimum/onnxruntime/modeling_decoder.py (forward, __init__)"


def _optimum(shape: Shape, evidence: Evidence) -> Verdict:
    return Verdict(
        target=OPTIMUM.name,
        runs="unverified",
        reason="names and cache sizes fit, but it is not installable beside transformers 5",
        source="huggingface/optimum-onnx pyproject.toml: transformers < 4.58",
    )


def _triton(shape: Shape, evidence: Evidence) -> Verdict:
    how = "the graph in the repository that `lpc export --format triton` writes"
    if evidence.export is not None and evidence.export.kind == "encoder-decoder":
        how = "both graphs with a config.pbtxt of your own (max_batch_size 0, the sizes of every input and output)"
    cache = (
        "; the client carries the cache from step to step" if shape.task in (Task.CAUSAL_LM, Task.SEQ2SEQ_LM) else ""
    )
    return Verdict(
        target=TRITON.name,
        runs="yes",
        reason=f"{how}; widths may differ; in an image whose onnxruntime is {FIRST_WITH_OPSET_23} or newer{cache}",
        source="triton-inference-server/onnxruntime_backend README.md, src/onnxruntime.cc (LoadModel); "
        "microsoft/onnxruntime#25156 (opset 23)",
    )


ONNXRUNTIME = Runtime(
    name="onnxruntime",
    meaning="the graphs, on the CPU provider",
    checks=(HAS_PACKAGE,),
    passed=_onnxruntime,
)
GENAI = Runtime(
    name="onnxruntime-genai",
    meaning="`onnxruntime_genai.Model(folder)`, on the CPU provider",
    checks=(HAS_PACKAGE, IS_DECODER, GENAI_RUNS_IT, SAME_TOKENS),
    passed=_genai,
)
LM_EVAL = Runtime(
    name="lm-eval, onnxruntime-genai backend",
    meaning="`lm_eval --model onnxruntime-genai`",
    checks=(HAS_PACKAGE, IS_DECODER, GENAI_TAKES_IT, SAME_TOKENS),
    passed=_lm_eval,
)
OPTIMUM = Runtime(
    name="optimum-onnx, ORTModelForCausalLM",
    meaning="nothing better than unverified: it cannot be installed beside transformers 5",
    checks=(
        HAS_PACKAGE,
        IS_DECODER,
        Check(needs="the same KV heads in every layer", source=OPTIMUM_DECODER, why_not=_uneven_cache),
        Check(needs="a square model", source=OPTIMUM_DECODER, why_not=_derived_head_dim),
    ),
    passed=_optimum,
)
TRITON = Runtime(
    name="Triton, onnxruntime backend",
    meaning="the graphs in a model repository, which `lpc export --format triton` writes for one graph",
    checks=(HAS_PACKAGE,),
    passed=_triton,
)
