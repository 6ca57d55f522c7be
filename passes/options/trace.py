"""Which dimensions to look for."""

from __future__ import annotations

from dataclasses import dataclass

from passes.errors import OptionError
from passes.options.check import check
from passes.options.option import Group, option

DEPTHS = ("layers", "blocks")


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Which dimensions to look for; docs/layouts.md, docs/depth.md and docs/hidden-size.md show what each is for."""

    query_heads: bool = option(
        False,
        help="Keep every KV head, and prune the query heads inside its group, as many in each.",
        group=Group.REMOVE,
    )
    custom_code: bool = option(
        False,
        help="Allow sizes that no stock class can hold; the checkpoint then carries a modelling file.",
        group=Group.REMOVE,
    )
    depth: str | None = option(
        None,
        choices=DEPTHS,
        help="Whole units of depth may go too: layers, or blocks (the attention and the MLP of each layer apart).",
        group=Group.REMOVE,
    )
    hidden: bool = option(
        False, help="The hidden size, whose channels all layers share, may shrink too.", group=Group.REMOVE
    )

    def __post_init__(self) -> None:
        check(self)
        if self.depth is not None and self.hidden:
            raise OptionError("depth and hidden cannot go in one run: prune one, then the result by the other")
