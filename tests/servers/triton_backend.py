"""onnxruntime as a backend of Triton in Python: ``model.py`` of a backend, in the place of Triton's own in C++."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path += os.environ["PYTHONPATH"].split(os.pathsep)  # which the interpreter that Triton starts does not read

import triton_python_backend_utils as triton
from onnxruntime import InferenceSession


class TritonPythonModel:
    """A model of the repository, by what its ``config.pbtxt`` says."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self.session = InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = ([each["name"] for each in config[part]] for part in ("input", "output"))

    def execute(self, requests: list[object]) -> list[object]:
        return [self.answer(request) for request in requests]

    def answer(self, request: object) -> object:
        feeds = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        values = self.session.run(self.outputs, feeds)
        return triton.InferenceResponse([triton.Tensor(*each) for each in zip(self.outputs, values, strict=True)])
