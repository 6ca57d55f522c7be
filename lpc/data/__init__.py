"""What a user hands over as data: texts, rows, chats, instructions, made into tokens."""

from lpc.data.chat import Chat
from lpc.data.collate import Collator
from lpc.data.documents import read_documents, read_jsonl, read_text
from lpc.data.frame import TextFrame, check_size
from lpc.data.labels import IGNORED
from lpc.data.readers import TEXT_LENGTH, Reading, read_data
from lpc.data.rows import SPLIT_SEED, Row, RowFormat, Rows, RowsLike, open_rows, split_rows
from lpc.data.sentences import Sentences
from lpc.data.text import BlockDataset, Data, TokenBlocks, split_heldout

__all__ = [
    "IGNORED",
    "SPLIT_SEED",
    "TEXT_LENGTH",
    "BlockDataset",
    "Chat",
    "Collator",
    "Data",
    "Reading",
    "Row",
    "RowFormat",
    "Rows",
    "RowsLike",
    "Sentences",
    "TextFrame",
    "TokenBlocks",
    "check_size",
    "open_rows",
    "read_data",
    "read_documents",
    "read_jsonl",
    "read_text",
    "split_heldout",
    "split_rows",
]
