"""Loops over stacked experts, in the places of the placeholders that tracing left for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim

from exporters.onnx.experts import DOMAIN, KIND, NUMBER, ExpertStep, Mixtures, stacked
from exporters.onnx.graph import GraphBuilder

SAMPLE_ROWS = 3


def put_loops(model: ir.Model, mixtures: Mixtures, opset: int) -> None:
    """Put a loop in the place of each placeholder of a traced graph, in place."""
    loops = _Loops(model.graph, opset)
    for node in list(model.graph):
        if (node.domain, node.op_type) == (DOMAIN, KIND):
            loops.put(node, mixtures.met[node.attributes.get_int(NUMBER)])
    model.opset_imports.pop(DOMAIN, None)


@dataclass
class _Loops:
    """The loops of one graph; experts that are alike are traced once."""

    graph: ir.Graph
    opset: int
    steps: dict[object, ir.Graph] = field(default_factory=dict)
    count: int = 0

    def put(self, node: ir.Node, experts: nn.Module) -> None:
        """Replace one placeholder."""
        outside = GraphBuilder()
        result = self._loop(node, self._step(experts), outside)
        self._adopt(outside)
        given = node.outputs[0]
        result.type, result.shape = given.type, given.shape
        self.graph.insert_before(node, outside.nodes)
        ir.convenience.replace_all_uses_with(given, result, replace_graph_outputs=True)
        name = given.name
        self.graph.remove(node, safe=True)
        result.name = name
        self.count += 1

    def _loop(self, node: ir.Node, step: ir.Graph, outside: GraphBuilder) -> ir.Value:
        """For each expert that is chosen: its tokens' rows, what it makes of them, added where they came from."""
        hidden, chosen, gates, *stacks = node.inputs
        assert hidden is not None
        assert hidden.dtype is not None
        used = outside.op("Unique", outside.op("Reshape", chosen, _ints(outside, "every", [-1])), sorted=1)
        nothing = ir.tensor(np.zeros(1, dtype=hidden.dtype.numpy()))
        start = outside.op("ConstantOfShape", outside.op("Shape", hidden), value=nothing)
        turn, going, so_far = (
            ir.Value(name=f"loop_{self.count}.{name}", type=ir.TensorType(dtype), shape=shape)
            for name, dtype, shape in (
                ("turn", ir.DataType.INT64, ir.Shape([])),
                ("going", ir.DataType.BOOL, ir.Shape([])),
                ("so_far", hidden.dtype, hidden.shape),
            )
        )
        inside = GraphBuilder()
        first, one = _ints(inside, "first", 0), _ints(inside, "one", [1])
        expert = inside.op("Gather", used, turn)
        places = inside.op("NonZero", inside.op("Equal", chosen, expert))
        tokens = inside.op("Gather", places, first)
        gate = inside.op("Unsqueeze", inside.op("GatherND", gates, inside.op("Transpose", places)), one)
        slices = [inside.op("Gather", stack, expert) for stack in stacks]
        outer = self._inlined(step, [inside.op("Gather", hidden, tokens), gate, *slices], inside)
        total = inside.op("ScatterND", so_far, inside.op("Unsqueeze", tokens, one), outer, reduction="add")
        outputs = [inside.op("Identity", going), total]
        self._adopt(inside)
        body = ir.Graph([turn, going, so_far], outputs, nodes=inside.nodes, name=f"loop_{self.count}")
        yes = outside.constant("lpc.yes", np.array(True))
        return outside.op("Loop", outside.op("Size", used), yes, start, body=body)

    def _inlined(self, step: ir.Graph, given: list[ir.Value], inside: GraphBuilder) -> ir.Value:
        """The nodes of a traced step, appended, on these inputs."""
        own = step.clone()
        for mine, value in zip(own.inputs, given, strict=True):
            ir.convenience.replace_all_uses_with(mine, value)
        outer = own.outputs[0]
        own.outputs.clear()
        for name, value in list(own.initializers.items()):
            del own.initializers[name]
            if list(value.uses()):
                value.name = f"loop_{self.count}.{name}"
                inside.initializers[value.name] = value
        nodes = list(own)
        own.remove(nodes)
        inside.nodes += nodes
        return outer

    def _adopt(self, built: GraphBuilder) -> None:
        """Give what was built names of its own, and the graph its constants."""
        for node in built.nodes:
            node.name = f"loop_{self.count}.{node.name}"
            for value in node.outputs:
                value.name = f"loop_{self.count}.{value.name}"
        for name, value in built.initializers.items():
            if name in self.graph.initializers:
                ir.convenience.replace_all_uses_with(value, self.graph.initializers[name])
            else:
                self.graph.register_initializer(value)

    def _step(self, experts: nn.Module) -> ir.Graph:
        plain = [(k, v) for k, v in sorted(vars(experts).items()) if isinstance(v, int | float | str)]
        shapes = [(name, tuple(parameter.shape)) for name, parameter in experts.named_parameters()]
        weights = [id(p) for name, p in experts.named_parameters() if name not in stacked(experts)]
        key = (type(experts), str(plain), str(shapes), str(getattr(experts, "act_fn", None)), tuple(weights))
        if key not in self.steps:
            self.steps[key] = _traced(experts, self.opset)
        return self.steps[key]


def _ints(builder: GraphBuilder, name: str, numbers: Any) -> ir.Value:
    return builder.constant(f"lpc.{name}", np.array(numbers, dtype=np.int64))


def _traced(experts: nn.Module, opset: int) -> ir.Graph:
    """The graph of one expert, whose number of rows is open."""
    slices = [getattr(experts, name)[0].detach() for name in stacked(experts)]
    width = slices[0].shape[0 if getattr(experts, "is_transposed", False) else 1]
    rows = torch.ones(SAMPLE_ROWS, width, dtype=slices[0].dtype)
    open_rows = {0: Dim("rows")}
    program = torch.onnx.export(
        ExpertStep(experts).eval(),
        (rows, rows[:, :1], *slices),
        dynamo=True,
        opset_version=opset,
        input_names=["rows", "gate", *stacked(experts)],
        output_names=["outer"],
        dynamic_shapes=(open_rows, open_rows, tuple({} for _ in slices)),
        verbose=False,
    )
    assert program is not None
    return program.model.graph
