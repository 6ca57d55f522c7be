"""What a user hands over as data: texts, rows, chats, instructions, made into tokens."""

from lpc.data.collate import Collator
from lpc.data.documents import read_documents, read_jsonl, read_text
from lpc.data.instructions import find_columns, instruction_rows
from lpc.data.rows import IGNORED, Row, RowFormat, Rows, RowsLike, is_rows, open_rows, split_rows
from lpc.data.text import BlockDataset, Data, split_heldout, token_sequences

__all__ = [
    "IGNORED",
    "BlockDataset",
    "Collator",
    "Data",
    "Row",
    "RowFormat",
    "Rows",
    "RowsLike",
    "find_columns",
    "instruction_rows",
    "is_rows",
    "open_rows",
    "read_documents",
    "read_jsonl",
    "read_text",
    "split_heldout",
    "split_rows",
    "token_sequences",
]
