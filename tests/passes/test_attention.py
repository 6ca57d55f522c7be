from __future__ import annotations

import pytest
from torch import nn
from workbench import build_model, unit_indices

from passes.attention import FAMILIES, SeparateLayout, family_of
from passes.errors import UnsupportedModelError

PATH = "model.layers.0.self_attn"


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(8, 4, 8), (8, 8, 4), (6, 1, 16), (6, 2, 8)])
def test_a_unit_is_a_kv_head_with_its_query_heads(family: str, heads: int, groups: int, head_dim: int) -> None:
    changes = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim, "hidden_size": 48}
    model = build_model(family, **changes)
    block = model.model.layers[0].self_attn
    dimension = family_of(model.config).layout.dimension(block, PATH, 0, model.config, head_dim)
    assert dimension.size == groups
    for part in dimension.slices:
        projection = part.module.rpartition(".")[2]
        for unit in range(groups):
            assert part.indices([unit]) == unit_indices(model.config, projection, unit)
        assert part.axis == (1 if projection == "o_proj" else 0)


def test_qwen2_biases_are_part_of_the_dimension() -> None:
    model = build_model("qwen2")
    dimension = family_of(model.config).layout.dimension(model.model.layers[0].self_attn, PATH, 0, model.config, 8)
    biases = {part.parameter for part in dimension.slices if not part.is_weight}
    assert biases == {f"{PATH}.{name}.bias" for name in ("q_proj", "k_proj", "v_proj")}


def test_a_norm_that_spans_all_heads_is_refused() -> None:
    model = build_model("qwen3")
    block = model.model.layers[0].self_attn
    block.q_norm.weight = nn.Parameter(block.q_norm.weight.new_ones(64))
    with pytest.raises(UnsupportedModelError, match=r"self_attn\.q_norm\.weight with shape \(64,\)"):
        family_of(model.config).layout.dimension(block, PATH, 0, model.config, 8)


def test_a_head_norm_that_the_layout_does_not_know_is_refused() -> None:
    model = build_model("qwen3")
    with pytest.raises(UnsupportedModelError, match="q_norm"):
        SeparateLayout().dimension(model.model.layers[0].self_attn, PATH, 0, model.config, 8)


def test_a_projection_that_is_not_linear_is_refused() -> None:
    model = build_model("llama")
    block = model.model.layers[0].self_attn
    block.v_proj = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="v_proj is not a linear layer but Identity"):
        SeparateLayout().dimension(block, PATH, 0, model.config, 8)
