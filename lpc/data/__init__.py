"""What a user hands over as data: texts, rows, chats, instructions, made into tokens."""

from lpc.data.chat import chat_prompts
from lpc.data.collate import Collator
from lpc.data.documents import read_documents, read_jsonl, read_text
from lpc.data.frame import TextFrame, check_size
from lpc.data.labels import IGNORED
from lpc.data.readers import Reading, read_data
from lpc.data.rows import Row, RowFormat, Rows, RowsLike, open_rows, split_rows
from lpc.data.text import BlockDataset, Data, TokenBlocks, split_heldout

__all__ = [
    "IGNORED",
    "BlockDataset",
    "Collator",
    "Data",
    "Reading",
    "Row",
    "RowFormat",
    "Rows",
    "RowsLike",
    "TextFrame",
    "TokenBlocks",
    "chat_prompts",
    "check_size",
    "open_rows",
    "read_data",
    "read_documents",
    "read_jsonl",
    "read_text",
    "split_heldout",
    "split_rows",
]
