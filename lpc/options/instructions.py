"""How instruction data become tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from passes.errors import DataError, MissingFileError, OptionError
from passes.options import Group, check, option

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
"""The prompt of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca), as LoRAPrune's authors tune with (prune.py)."""

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The same, for a row that has an input."""

PLACE = re.compile(r"\{(instruction|input)\}")


def read_template(file: Path) -> str:
    """The text of a template file. Raises MissingFileError, DataError."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {file}: name the file that holds the prompt's template") from None
    except OSError as error:
        raise DataError(f"the template {file} cannot be read ({error.strerror}): name a text file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the template {file} is not UTF-8 text: {error}") from error


@dataclass(frozen=True, kw_only=True)
class InstructionFormat:
    """How instruction data become tokens (docs/instructions.md).

    Prompts of a ``prompt`` column are taken as they stand, and ``messages`` through the tokenizer's chat template.
    """

    template: str | None = option(
        None,
        help="Prompt of an instruction column: a text with {instruction}, and {input} where rows have inputs; the "
        "answer follows it directly. By default Alpaca's two texts, with and without an input.",
        group=Group.DATA,
        flag="--prompt-template",
        metavar="FILE",
        words=Path,
        read=read_template,
    )
    mask_prompt: bool = option(True, help="Only the answers' tokens have labels; else all tokens have.")

    def __post_init__(self) -> None:
        check(self)
        if self.template is not None and "{instruction}" not in self.template:
            raise OptionError(f"the template {self.template[:60]!r} has no {{instruction}}: say where it goes")

    def prompt(self, instruction: str, context: str) -> str:
        """The prompt of an instruction and its input, which may be empty. Raises DataError if the input is lost."""
        template = self.template or (ALPACA_WITH_INPUT if context else ALPACA)
        if context and "{input}" not in template:
            raise DataError("has an input, and the template has no {input}: say where it goes")
        values = {"instruction": instruction, "input": context}
        return PLACE.sub(lambda place: values[place[1]], template)  # in one pass: what is filled in is not looked at
