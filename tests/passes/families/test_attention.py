from __future__ import annotations

import pytest
import zoo
from torch import nn
from workbench import build_model, unit_indices

from passes.errors import UnsupportedModelError
from passes.families import FAMILIES, AttentionLayout, Packing, unit_kind
from passes.graph import Kind, Role

PATH = "model.layers.0.self_attn"
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


def layout_of(family: str) -> AttentionLayout:
    return FAMILIES[family].attentions[0]


@pytest.mark.parametrize("family", LLAMA_LIKE)
@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(8, 4, 8), (8, 8, 4), (6, 1, 16), (6, 2, 8)])
def test_a_unit_is_a_kv_head_with_its_query_heads(family: str, heads: int, groups: int, head_dim: int) -> None:
    changes = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim, "hidden_size": 48}
    model = build_model(family, **changes)
    block = layout_of(family).read(model, PATH)
    assert (block.groups, block.heads, block.head_dim, block.per_group) == (groups, heads, head_dim, heads // groups)
    for part in block.group_slices():
        projection = part.module.rpartition(".")[2]
        for unit in range(groups):
            assert part.indices([unit]) == unit_indices(model.config, projection, unit)
        assert part.axis == (1 if projection == "o_proj" else 0)
        if part.parameter.endswith("weight"):
            assert part.role is (Role.CONSUME if projection == "o_proj" else Role.PRODUCE)


def test_qwen2_biases_are_part_of_the_dimension() -> None:
    block = layout_of("qwen2").read(build_model("qwen2"), PATH)
    biases = {part.parameter for part in block.group_slices() if part.role is Role.FOLLOW}
    assert biases == {f"{PATH}.{name}.bias" for name in ("q_proj", "k_proj", "v_proj")}


def rows(name: str, path: str, projection: str, unit: int, *, group: int | None = None) -> list[int]:
    """The indices of a unit in the fused layer of a model of the zoo: of a KV group, or of a query head in a group."""
    model = zoo.build(name)
    block = next(layout for layout in FAMILIES[model.config.model_type].attentions if layout.matches(path)).read(
        model, path
    )
    parts = block.group_slices() if group is None else block.query_slices(group)
    (part,) = [part for part in parts if part.parameter == f"{path}.{projection}.weight"]
    return part.indices([unit])


def span(*starts: int, size: int) -> list[int]:
    return [start + i for start in starts for i in range(size)]


def test_fused_parts_lie_queries_then_keys_then_values() -> None:
    # GPT-2: 8 heads of 4; [q; k; v] of 32 each
    assert rows("gpt2", "transformer.h.1.attn", "c_attn", 3) == span(12, 32 + 12, 64 + 12, size=4)
    assert rows("gpt2", "transformer.h.1.attn", "c_proj", 3) == span(12, size=4)
    # Phi-3: 8 query heads of 4 (32 rows), 4 keys (16 rows), 4 values (16 rows)
    assert rows("phi3", "model.layers.0.self_attn", "qkv_proj", 2) == [
        *span(16, 20, size=4),
        *span(32 + 8, size=4),
        *span(48 + 8, size=4),
    ]
    assert rows("phi3", "model.layers.0.self_attn", "o_proj", 2) == span(16, 20, size=4)


def test_fused_groups_lie_queries_key_value_a_kv_head() -> None:
    # GPT-NeoX: 8 heads of 4, [q, k, v] a head
    assert rows("gpt_neox", "gpt_neox.layers.0.attention", "query_key_value", 5) == span(60, size=12)
    # Falcon's new architecture: 4 groups of 2 queries, 1 key and 1 value, of 4
    assert rows("falcon-grouped", "transformer.h.0.self_attention", "query_key_value", 1) == span(16, size=16)
    assert rows("falcon-grouped", "transformer.h.0.self_attention", "dense", 1) == span(8, size=8)


def test_query_heads_lie_inside_their_group() -> None:
    path = "transformer.h.0.self_attention"
    assert rows("falcon-grouped", path, "query_key_value", 1, group=2) == span(2 * 16 + 4, size=4)
    assert rows("falcon-grouped", path, "dense", 1, group=2) == span(2 * 8 + 4, size=4)
    assert rows("falcon-mqa", path, "query_key_value", 6, group=0) == span(24, size=4)
    assert rows("phi3", PATH, "qkv_proj", 1, group=3) == span(28, size=4)
    assert rows("llama", PATH, "q_proj", 1, group=3) == span(56, size=8)


@pytest.mark.parametrize(
    ("name", "asked", "kind"),
    [
        ("falcon-mqa", False, Kind.QUERY_HEADS),
        ("falcon-grouped", False, Kind.KV_GROUPS),
        ("falcon-grouped", True, Kind.QUERY_HEADS),
    ],
)
def test_units_are_query_heads_where_asked_or_where_there_is_one_kv_head(name: str, asked: bool, kind: Kind) -> None:
    block = layout_of("falcon").read(zoo.build(name), "transformer.h.0.self_attention")
    assert unit_kind(block, query_heads=asked) is kind


def test_norms_with_weights_a_head_are_cut_with_it() -> None:
    # Cohere's are [heads, head_dim]; Phi's key norm is over one head's values, which all heads share.
    cohere = layout_of("cohere").read(zoo.build("cohere-qk-norm"), PATH)
    found = {part.parameter: part.indices([1]) for part in cohere.group_slices()}
    assert found[f"{PATH}.q_norm.weight"] == [2, 3]
    assert found[f"{PATH}.k_norm.weight"] == [1]
    heads = {part.parameter: part.indices([1]) for part in cohere.query_slices(2)}
    assert heads[f"{PATH}.q_norm.weight"] == [5]
    assert f"{PATH}.k_norm.weight" not in heads


def test_a_norm_that_spans_all_heads_is_refused() -> None:
    model = build_model("qwen3")
    block = model.model.layers[0].self_attn
    block.q_norm.weight = nn.Parameter(block.q_norm.weight.new_ones(64))
    with pytest.raises(UnsupportedModelError, match=r"self_attn\.q_norm\.weight with shape \(64,\)"):
        layout_of("qwen3").read(model, PATH)


def test_a_head_norm_that_the_layout_does_not_know_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="q_norm"):
        AttentionLayout().read(build_model("qwen3"), PATH)


def test_a_projection_that_is_not_linear_is_refused() -> None:
    model = build_model("llama")
    model.model.layers[0].self_attn.v_proj = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"self_attn\.v_proj is not a linear layer but Identity"):
        AttentionLayout().read(model, PATH)


def test_a_projection_that_is_missing_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"there is no .*self_attn\.dense"):
        AttentionLayout(output="dense").read(build_model("llama"), PATH)


def test_a_block_that_does_not_tell_the_size_of_its_heads_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn has no head_width"):
        AttentionLayout(head_dim="head_width").read(build_model("llama"), PATH)


@pytest.mark.parametrize(
    ("projection", "outputs", "message"),
    [
        ("q_proj", 80, "q_proj has 80 outputs, expected 64"),
        ("v_proj", 24, "v_proj has 24 outputs, expected 32"),
        ("k_proj", 24, "8 query heads do not divide among 3"),
        ("k_proj", 4, "8 query heads do not divide among 0"),
    ],
)
def test_a_projection_of_another_size_is_refused(projection: str, outputs: int, message: str) -> None:
    model = build_model("llama")
    setattr(model.model.layers[0].self_attn, projection, nn.Linear(32, outputs, bias=False))
    with pytest.raises(UnsupportedModelError, match=message):
        AttentionLayout().read(model, PATH)


def test_an_output_that_is_no_multiple_of_the_head_size_is_refused() -> None:
    model = build_model("llama")
    model.model.layers[0].self_attn.o_proj = nn.Linear(66, 32, bias=False)
    with pytest.raises(UnsupportedModelError, match="o_proj has 66 inputs, expected 64"):
        AttentionLayout().read(model, PATH)


def test_a_packed_layer_of_another_size_is_refused() -> None:
    model = zoo.build("phi3")
    model.model.layers[0].self_attn.qkv_proj = nn.Linear(32, 66, bias=False)
    with pytest.raises(UnsupportedModelError, match="qkv_proj has 66 outputs, expected 64"):
        AttentionLayout(projections=("qkv_proj",), packing=Packing.PARTS).read(model, PATH)
