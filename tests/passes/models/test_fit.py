from __future__ import annotations

import pytest

from passes.errors import ModelError
from passes.models import Misfit

WANTED = ("model.embed.weight", "model.layers.0.up.weight", "model.layers.1.up.weight", "lm_head.weight")


def why(missing: set[str] = frozenset(), unexpected: set[str] = frozenset(), **mismatched: object) -> str:  # type: ignore[assignment]
    shapes = {name.replace("__", "."): shapes for name, shapes in mismatched.items()}
    with pytest.raises(ModelError) as caught:
        Misfit(missing, unexpected, shapes).check("FOLDER", "the weights of X", WANTED)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_whole_checkpoint_passes() -> None:
    Misfit((), (), {}).check("FOLDER", "the weights of X", WANTED)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "pretrained_model.", "language_model."]
)
def test_a_wrappers_prefix_is_named(prefix: str) -> None:
    found = why(set(WANTED), {prefix + name for name in WANTED})
    assert f"The names have '{prefix}' in them" in found
    assert "4 tensors are missing" in found
    assert "4 tensors have no place" in found


def test_a_part_inside_of_names_is_named() -> None:
    inner = {name.replace("model.", "model.language_model.", 1) for name in WANTED if name.startswith("model.")}
    assert "'language_model.'" in why({name for name in WANTED if name.startswith("model.")}, inner)


def test_more_layers_than_configured_are_counted() -> None:
    assert "It has layers up to 3" in why(unexpected={"model.layers.2.up.weight", "model.layers.3.up.weight"})


def test_fewer_layers_than_configured_are_counted() -> None:
    assert "config.json says 2 layers, and not all of them are there" in why({"model.layers.1.up.weight"})


def test_biases_that_are_missing_are_no_missing_layers() -> None:
    wanted = {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("q.weight", "q.bias")}
    missing = {name for name in wanted if name.endswith("bias")}
    with pytest.raises(ModelError, match="asks for biases that the checkpoint does not have"):
        Misfit(missing, (), {}).check("FOLDER", "the weights of X", wanted)


def test_a_bias_without_a_place_is_no_layer_too_many() -> None:
    assert "correct architectures" in why(unexpected={"model.layers.0.up.bias"})


def test_tensors_of_another_model_are_called_so() -> None:
    assert "those of another model" in why(set(WANTED), {"transformer.h.0.attn"})


def test_a_part_that_the_class_has_not_is_no_place() -> None:
    assert "correct architectures" in why(unexpected={"score.weight"})


def test_a_mis_shaped_tensor_has_both_shapes_in_the_message() -> None:
    found = why(lm_head__weight=((3, 4), (5, 4)))
    assert "lm_head.weight has shape [3, 4] where [5, 4] is wanted" in found
    assert "other sizes" in found


def test_a_remedy_for_another_kind_of_file_stands_in() -> None:
    with pytest.raises(ModelError, match=r"as from DataParallel or DDP\. Do this"):
        Misfit({"a"}, {"module.a"}, {}).check("FOLDER", "it", {"a"}, "Do this")
    with pytest.raises(ModelError, match=r"\(a\)\. Do this"):
        Misfit({"a"}, (), {}).check("FOLDER", "it", {"a"}, "Do this")


def test_only_the_first_few_are_named() -> None:
    names = {f"model.part{number}.weight" for number in range(9)}
    assert "9 tensors are missing (model.part0.weight, model.part1.weight, model.part2.weight, ...)" in why(names)
