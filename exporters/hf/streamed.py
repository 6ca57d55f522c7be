"""The Hugging Face checkpoint of a model that is never whole in memory: its tensors are written as they come.

The files are those that ``save_pretrained`` writes, byte for byte. What was written is read back tensor by tensor, and
its configuration built again on the meta device; nothing is computed with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import AutoConfig, PreTrainedModel

from exporters.hf.checkpoint import Processor, class_of, first_entry, save_checkpoint
from exporters.hf.weights_file import WeightsFile
from passes.errors import PostconditionError
from passes.models import unloaded, vendor

PATTERN, INDEX = "model{suffix}.safetensors", "model.safetensors.index.json"
MOST_BYTES = "50GB"
"""Where ``save_pretrained`` begins another file."""


def why_not_streamed(model: PreTrainedModel) -> str | None:
    """Why the checkpoint of a model (on the meta device) cannot be written a tensor at a time; None if it can."""
    one_by_one = {name for pieces in _pieces(model).values() for name in pieces}
    odd = sorted(one_by_one ^ vendor.as_saved(model, vendor.without_tied(model)).keys())
    return f"several of its tensors make {odd[0]} when they are saved" if odd else None


def save_streamed(
    model: PreTrainedModel, tensors: Iterable[tuple[str, torch.Tensor]], processor: Processor | None, folder: Path
) -> None:
    """Write the checkpoint of ``model``, which is on the meta device, with the values that come, by parameter name.

    Raises PostconditionError if one is missing, comes twice or is of another shape, and if what is read back differs.
    """
    save_checkpoint(model, processor, folder, weights=False)
    pieces, kept = _pieces(model), _kept_names(model)
    planned = {name: tensor for each in pieces.values() for name, tensor in each.items()}
    with ExitStack() as opened:
        files = [opened.enter_context(each) for each in _files(model, planned, folder)]
        place = {name: file for file in files for name in planned if name in file}
        for name, tensor in tensors:
            for stored, part in vendor.as_saved(model, {kept[name]: tensor}).items():
                place[stored].write(stored, part)
                del part
            del tensor  # or it is there still when the next one is made
    for file in files:
        file.check()
    _check_built(model, folder)


def _kept_names(model: PreTrainedModel) -> dict[str, str]:
    """The name under which each parameter is kept, by its first name: they differ where several are tied."""
    kept = {id(model.get_parameter(name)): name for name in vendor.without_tied(model)}
    return {name: kept[id(parameter)] for name, parameter in model.named_parameters()}


def _pieces(model: PreTrainedModel) -> dict[str, Mapping[str, torch.Tensor]]:
    """The tensors that are stored of each one that is kept, all on the meta device."""
    return {name: vendor.as_saved(model, {name: tensor}) for name, tensor in vendor.without_tied(model).items()}


def _files(model: PreTrainedModel, planned: Mapping[str, torch.Tensor], folder: Path) -> list[WeightsFile]:
    """The files, as ``save_pretrained`` splits them, and their index where there are several."""
    split = split_state_dict_into_shards_factory(
        dict(planned),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=PATTERN,
        max_shard_size=MOST_BYTES,
    )
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [
        WeightsFile(folder / file, {name: planned[name] for name in names})
        for file, names in split.filename_to_tensors.items()
    ]


def _check_built(model: PreTrainedModel, folder: Path) -> None:
    """Raise PostconditionError unless the checkpoint that was written is one of this model, by names and shapes."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = unloaded(class_of(str(folder), config), folder, config).model
    mine, theirs = ({n: (p.shape, p.dtype) for n, p in each.named_parameters()} for each in (model, found))
    odd = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    different = odd[0] if odd else first_entry(model.config.to_dict(), found.config.to_dict())
    if different is not None:
        raise PostconditionError(f"the checkpoint that was written is not what was to be saved: {different}")
