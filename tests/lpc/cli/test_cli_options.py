"""What the shared options of the commands make."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpc.cli.options import instructions_of
from lpc.options import InstructionFormat
from passes.errors import MissingFileError, OptionError


def test_a_template_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Q: {instruction}\nA: ")
    assert instructions_of(tmp_path / "prompt.txt") == InstructionFormat(template="Q: {instruction}\nA: ")
    assert instructions_of(None) is None


def test_a_template_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Q:")
    with pytest.raises(OptionError, match=r"has no \{instruction\}"):
        instructions_of(tmp_path / "prompt.txt")
    with pytest.raises(MissingFileError, match="no such file"):
        instructions_of(tmp_path / "absent.txt")
