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
    ├── StoppedError             RuntimeError         who watched the run has ended it: it was behind others
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
    """Base of every error that lpc raises on purpose. As text, it holds no control characters.

    Catch it where whatever the user can mend is to be told as one message.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class OptionError(LpcError, ValueError):
    """An option has an impossible value, or two options contradict one another.

    The message names the option, its limits or its choices and, for a word that is almost one of them, the nearest;
    docs/options.md has them all. Also raised for a device, a log or a package that is asked for and is not there.
    """


class UnreachableBudgetError(OptionError):
    """No choice of kept units meets the budget; the message says what can be reached.

    Ask for less, or let more go: ``lpc inspect MODEL`` shows the share that can go and what stays whole, ``--hidden``
    and ``--depth`` add dimensions, ``--min-heads`` and ``--min-channels`` are floors of your own.
    """


class MissingFileError(LpcError, FileNotFoundError):
    """A named file or folder does not exist.

    Paths are seen from the current folder. A model that is no folder is looked for on the Hugging Face hub, or in its
    cache where there is no network.
    """


class DataError(LpcError, ValueError):
    """The text or data set cannot be used: empty, too short, of another form, or broken.

    The message names the file and the line. docs/evaluate.md and docs/instructions.md say which forms there are; text
    too short for one sequence and one held-out sequence needs a smaller ``--sequence-length``, or more text.
    """


class ModelError(LpcError, ValueError):
    """The model cannot be loaded or used: weights are missing or not finite, or a configuration contradicts them.

    Where a tensor is to blame, it is named. Gradients that are not finite while tuning ask for a lower
    ``--learning-rate``, or other data.
    """


class TokenizerError(ModelError):
    """The tokenizer is missing or belongs to another model.

    Put the model's own tokenizer files beside its weights, or give ``tokenizer=`` in Python.
    """


class UnsupportedModelError(ModelError, NotImplementedError):
    """The model's structure cannot be proven sound to prune, so it is refused.

    docs/families.md has the model types that are known; one of your own takes a description of a few lines
    (docs/custom-models.md). ``--custom-code`` lets heads go that no stock class can do without.
    """


class PlanError(LpcError, ValueError):
    """A plan is malformed, or was made for another model, or what is given with it is not what it names.

    A plan knows its model by a fingerprint and its artifacts by their sha256: take those that lie beside it.
    """


class PluginError(LpcError, RuntimeError):
    """An entry that an installed package brings cannot be loaded; the message names both.

    Update or remove that package (docs/extending.md says what an entry is).
    """


class EngineError(LpcError, RuntimeError):
    """A server that was started ended before it served, or did not answer; the message names it and its version."""


class OutOfMemoryError(LpcError, MemoryError):
    """A stage needs more memory than there is; the message says which option to change, and to what.

    ``lpc estimate MODEL --device 24GB`` says it before a run (docs/estimate.md). What was finished is kept.
    """


class OutputError(LpcError, OSError):
    """The output could not be written: the disk is full or refuses, or another process is writing there.

    A lock that is held names its process and host; one that a dead process left is taken over.
    """


class OutputExistsError(OutputError, FileExistsError):
    """The output folder already holds something.

    Choose another ``--out``, or replace lpc's own files there with ``--force``; files of yours are never removed.
    """


class FinishedError(OutputExistsError):
    """The output is there already, whole, and made by the very recipe that was asked for.

    The command says so and ends with 0. ``--fresh --force`` makes it again.
    """


class StoppedError(LpcError, RuntimeError):
    """Who watched the run has ended it: it was behind others of a sweep, and its result would not be wanted.

    docs/sweep.md says how cells are compared; without ``early_stopping`` all run to their ends.
    """


class RankError(LpcError, RuntimeError):
    """Another process of the same run failed; the message is that one's, and ``kind`` the name of its error.

    The first process that failed tells what to mend.
    """

    kind: str = ""


class PassError(LpcError, RuntimeError):
    """A pass failed; the message names it."""


class PreconditionError(PassError):
    """What a pass requires of the program does not hold.

    Passes were put into an order that cannot be: the message names the one that must run before (docs/pipeline.md).
    """


class PostconditionError(PassError):
    """What a pass ensures about its result does not hold: verification failed, and what it made is not written.

    The message names the pass, the layer and the number. It is never your fault: please report it with ``lpc.json`` or
    the run folder. docs/trust.md says what is compared and how finely.
    """
