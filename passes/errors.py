"""Every error that lpc raises on purpose.

::

    LpcError
    ├── OptionError              ValueError           an option has an impossible value
    │   └── UnreachableBudgetError                     no choice of kept units meets the budget
    ├── MissingFileError         FileNotFoundError    a named file or folder is not there
    ├── DataError                ValueError           the text cannot be used (empty, too short, wrong format)
    ├── ModelError               ValueError           the model cannot be used (NaN weights, cannot be loaded)
    │   ├── TokenizerError                            the tokenizer is missing, or is another model's
    │   └── UnsupportedModelError NotImplementedError the structure cannot be proven sound, so it is refused
    ├── PlanError                ValueError           the plan is malformed or belongs to another model
    ├── PluginError              RuntimeError         an entry that an installed package brings cannot be loaded
    ├── EngineError              RuntimeError         a server that was started ended, or did not answer
    ├── OutOfMemoryError         MemoryError          a stage needs more memory than there is; says what to change
    ├── OutputError              OSError              the output could not be written
    │   └── OutputExistsError    FileExistsError      the output folder is not empty
    │       └── FinishedError                         it holds the very result that was asked for
    ├── RankError                RuntimeError         another process of the same run failed, and tells why
    └── PassError                RuntimeError         a pass failed
        ├── PreconditionError                         what a pass requires does not hold
        └── PostconditionError                        what a pass ensures does not hold (verification failed)

Catch ``LpcError`` for all of them. A message names the value and the remedy; the CLI prints it and exits with 2.
"""

from __future__ import annotations

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move a terminal's cursor, hide or reorder its text, or cannot be written to it."""


def visible(text: str) -> str:
    """Text that may come from a file, fit for a terminal: what would steer it is spelt out (``\\x1b``); lines stay."""
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in STEERING else repr(letter)[1:-1]
        for letter in text
    )


class LpcError(Exception):
    """Base of every error that lpc raises on purpose. As text, it holds no control characters."""

    def __str__(self) -> str:
        return visible(super().__str__())


class OptionError(LpcError, ValueError):
    """An option has an impossible value."""


class UnreachableBudgetError(OptionError):
    """No choice of kept units meets the budget; the message says what can be reached."""


class MissingFileError(LpcError, FileNotFoundError):
    """A named file or folder does not exist."""


class DataError(LpcError, ValueError):
    """The text or data set cannot be used."""


class ModelError(LpcError, ValueError):
    """The model cannot be loaded or used."""


class TokenizerError(ModelError):
    """The tokenizer is missing or belongs to another model."""


class UnsupportedModelError(ModelError, NotImplementedError):
    """The model's structure cannot be proven sound to prune, so it is refused."""


class PlanError(LpcError, ValueError):
    """A plan is malformed, or was made for another model."""


class PluginError(LpcError, RuntimeError):
    """An entry that an installed package brings cannot be loaded; the message names both."""


class EngineError(LpcError, RuntimeError):
    """A server that was started ended before it served, or did not answer; the message names it and its version."""


class OutOfMemoryError(LpcError, MemoryError):
    """A stage needs more memory than there is; the message says which option to change, and to what."""


class OutputError(LpcError, OSError):
    """The output could not be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output folder already holds something."""


class FinishedError(OutputExistsError):
    """The output is there already, whole, and made by the very recipe that was asked for."""


class RankError(LpcError, RuntimeError):
    """Another process of the same run failed; the message is that one's, and ``kind`` the name of its error."""

    kind: str = ""


class PassError(LpcError, RuntimeError):
    """A pass failed; the message names it."""


class PreconditionError(PassError):
    """What a pass requires of the program does not hold."""


class PostconditionError(PassError):
    """What a pass ensures about its result does not hold: verification failed."""
