"""``--help`` by groups, the common options first."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from passes.options import Group


class GroupedCommand(TyperCommand):
    """A command whose help has a section a group; an option's group is its help panel, with a space if not common."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for group in Group:
            sections |= {str(group): [], f"{group} ": []}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None:
                panel = getattr(each, "rich_help_panel", None) or f"{Group.OUTPUT} "
                sections["Arguments" if each.param_type_name == "argument" else panel].append(record)
        for title in ("Arguments", *Group):
            rows = [*sections[title], *sections.get(f"{title} ", [])]
            if rows:
                with formatter.section(title.capitalize()):
                    formatter.write_dl(rows)
