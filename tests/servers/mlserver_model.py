"""An ONNX graph as a model of MLServer: the inputs of a request are its feeds, the response has all that it gives."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnxruntime import InferenceSession


class Graph(MLModel):
    """``parameters.uri`` of the settings is the graph's file."""

    async def load(self) -> bool:
        self.session = InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        names = [each.name for each in self.session.get_outputs()]
        values = self.session.run(names, {each.name: NumpyCodec.decode_input(each) for each in payload.inputs})
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(names, values, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
