from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = """
import exporters, numpy, onnxruntime, onnx
from onnx import TensorProto, helper
kind = TensorProto.FLOAT
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g",
    [helper.make_tensor_value_info("x", kind, [1])], [helper.make_tensor_value_info("y", kind, [1])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.zeros(1, numpy.float32)})
"""


def written(home: Path, code: str, **more: str) -> list[Path]:
    """What a process that runs the code leaves in its home folder."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **more}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform != "linux", reason="what onnxruntime writes is known for Linux")
def test_onnxruntime_writes_no_device_id_and_the_check_would_see_one(tmp_path: Path) -> None:
    assert written(tmp_path / "off", SESSION) == []
    loud = SESSION.replace("exporters, ", "")
    if not any("onnxruntime" in path.name for path in written(tmp_path / "on", loud)):
        pytest.skip("this build of onnxruntime has no telemetry")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not there")
def test_onnxruntime_and_genai_look_nothing_up(tmp_path: Path) -> None:
    trace, code = tmp_path / "trace", SESSION + "import onnxruntime_genai, time; time.sleep(1)\n"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = ["strace", "-f", "-e", "trace=connect,sendto,socket", "-o", str(trace), sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=False, timeout=240, capture_output=True, text=True)
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("tracing is not allowed here")
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in trace.read_text()


def test_the_users_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters.telemetry import VARIABLE, switch_off

    monkeypatch.setenv(VARIABLE, "0")
    switch_off()
    assert os.environ[VARIABLE] == "0"
    monkeypatch.delenv(VARIABLE)
    switch_off()
    assert os.environ[VARIABLE] == "1"
