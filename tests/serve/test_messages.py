"""The compiled descriptors of the protocol's messages are those of the .proto files."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "genai_ray" / "serve" / "oip"


def test_compiled_descriptors_are_those_of_the_proto_files(tmp_path):
    """By the command that ``inference.proto`` names."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is needed to compile")
    comment = re.sub(r"^//", "", (FOLDER / "inference.proto").read_text(), flags=re.MULTILINE)
    command = shlex.split(comment[comment.index("python -m") : comment.index("syntax =")].replace("\\\n", " "))
    assert command[0] == "python"
    compiled = tmp_path / FOLDER.relative_to(ROOT) / "inference.binpb"
    compiled.parent.mkdir(parents=True)
    for name in ("inference.proto", "health.proto"):
        shutil.copy(FOLDER / name, compiled.parent)
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    ours, theirs = (FileDescriptorSet.FromString(path.read_bytes()) for path in (FOLDER / compiled.name, compiled))
    assert ours == theirs
