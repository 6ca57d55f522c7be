"""Stock classes load compact checkpoints, without the file beside the weights being run, once lpc is imported.

``install`` changes one thing in transformers: a model class that is called with a configuration whose ``architectures``
name a class of ``passes.models.resized`` makes an instance of that subclass of itself. Everything that loads or
builds models ends in that call: ``from_pretrained`` and ``from_config`` of every auto class and of the stock classes.
For all other configurations nothing changes. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODULE = "transformers.modeling_utils"


def install() -> None:
    """Teach transformers' model classes, now or as soon as transformers is imported. A second call does nothing."""
    module = sys.modules.get(MODULE)
    if module is not None:
        _teach(module)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


def is_installed() -> bool:
    """Whether transformers' model classes have been taught."""
    module = sys.modules.get(MODULE)
    return module is not None and getattr(module.PreTrainedModel.__new__, "__module__", None) == __name__


class _WhenImported(MetaPathFinder):
    """Finds the one module as the other finders do, and has its model classes taught once it has run."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec: ModuleSpec | None = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_teach(module: ModuleType) -> None:
                run(module)
                _teach(module)

            spec.loader.exec_module = run_and_teach  # type: ignore[method-assign]
        return spec


def _teach(module: ModuleType) -> None:
    if is_installed():
        return
    original = module.PreTrainedModel.__new__

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        config = args[0] if args else kwargs.get("config")
        return original(_class_for(cls, config))

    module.PreTrainedModel.__new__ = staticmethod(new)


def _class_for(cls: type, config: Any) -> type:
    from passes.models.resized import PREFIX, compact_class, has_own_sizes

    named = (getattr(config, "architectures", None) or [""])[0]
    if not named.startswith(PREFIX) or cls.__name__.startswith(PREFIX) or not has_own_sizes(config):
        return cls
    return compact_class(cls)
