"""Read configurations by Triton's own protobuf: ``python triton_parse.py CONFIG ...`` prints a JSON list.

Runs in the servers' environment. The generated module is loaded by itself: the package around it wants grpc, which is
not needed to read a text.
"""

import importlib.util
import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format

package = importlib.util.find_spec("tritonclient")
assert package is not None
assert package.submodule_search_locations is not None
path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
spec = importlib.util.spec_from_file_location("model_config_pb2", path)
assert spec is not None
assert spec.loader is not None
protobuf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(protobuf)

found = []
for name in sys.argv[1:]:
    text = Path(name).read_text(encoding="utf-8")
    config = text_format.Parse(text, protobuf.ModelConfig())
    found.append(json_format.MessageToDict(config, preserving_proto_field_name=True))
print(json.dumps(found))
