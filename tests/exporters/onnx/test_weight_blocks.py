from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor

from exporters.onnx.blockwise import in_blocks, pack, unpack
from exporters.onnx.calibrated import lengths_on, solved
from exporters.onnx.quantised_proof import FARTHEST_ROW, _farthest_row


def _weights(rows: int = 6, columns: int = 64) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_come_out_of_their_bytes_as_they_went_in(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 5, 32), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_nearest_codes_are_those_of_onnxruntime_s_own_quantiser(bits: int) -> None:
    weights = _weights()
    blocks = in_blocks(weights, bits, 32, symmetric=False, search=False)
    codes, scales, zeros = quant_tensor(weights.numpy(), bits, 32, "asym", "uint")
    expected = ((codes - zeros) * scales).reshape(weights.shape).astype(np.float32)
    assert np.abs(blocks.values.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_number_is_within_half_a_step(bits: int, symmetric: bool) -> None:
    weights = _weights()
    blocks = in_blocks(weights, bits, 16, symmetric=symmetric, search=False)
    off = (blocks.values - weights).abs().reshape(6, -1, 16)
    steps = blocks.scales.abs()[..., None]
    allowed = 1.0 if symmetric else 0.5  # the lowest code of a symmetric block has no opposite
    assert (off <= steps * allowed * 1.001 + (0 if symmetric else steps * 0.5)).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_has_the_smaller_error_in_every_block(symmetric: bool) -> None:
    weights = _weights(40, 96)
    errors = []
    for search in (False, True):
        found = in_blocks(weights, 4, 32, symmetric=symmetric, search=search).values
        errors.append(((found - weights) ** 2).reshape(40, -1, 32).sum(-1))
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


def test_importance_moves_the_error_to_the_columns_that_count_less() -> None:
    weights, importance = _weights(200, 32), torch.ones(32)
    importance[:4] = 100.0
    plain, told = (
        in_blocks(weights, 4, 32, symmetric=False, search=True, importance=each).values for each in (None, importance)
    )
    assert ((told - weights)[:, :4] ** 2).sum() < ((plain - weights)[:, :4] ** 2).sum()


def test_the_last_block_is_padded_and_cut_off_again() -> None:
    weights = _weights(5, 40)
    blocks = in_blocks(weights, 4, 32, symmetric=False, search=False)
    assert (blocks.packed().shape, blocks.packed_zeros().shape, blocks.values.shape) == ((5, 2, 16), (5, 1), (5, 40))


def test_rows_are_the_same_however_many_are_searched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _weights(7, 64)
    whole = in_blocks(weights, 4, 32, symmetric=False, search=True)
    monkeypatch.setattr("exporters.onnx.blockwise.CHUNK", 128)
    assert torch.equal(in_blocks(weights, 4, 32, symmetric=False, search=True).codes, whole.codes)


def test_zeros_stay_zero() -> None:
    blocks = in_blocks(torch.zeros(3, 32), 4, 32, symmetric=False, search=True)
    assert torch.equal(blocks.values, torch.zeros(3, 32))


def test_calibrated_codes_leave_products_nearer_than_the_nearest_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, mixing = _weights(24, 96), torch.randn(96, 96, generator=generator)
    inputs = torch.randn(500, 96, generator=generator) @ mixing
    errors = []
    for found in (
        in_blocks(weights, 4, 32, symmetric=True, search=False),
        solved(weights, inputs.T @ inputs, 4, 32, symmetric=True),
    ):
        errors.append(float((inputs @ (found.values - weights).T).norm()))
    assert errors[1] < 0.8 * errors[0]


def test_a_calibrated_row_is_near_on_its_text_and_another_one_is_not() -> None:
    weights = _weights(24, 96)
    inputs = torch.randn(500, 96, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 2, 96)
    gram = inputs.T @ inputs
    found = solved(weights, gram, 4, 32, symmetric=True).values
    assert _farthest_row(weights, found, gram) < 0.3
    assert _farthest_row(weights, found.roll(1, dims=0), gram) > FARTHEST_ROW


def test_a_row_whose_products_nearly_cancel_out_is_near_in_its_numbers_and_another_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 8, generator=generator) @ torch.randn(8, 96, generator=generator)
    weights, gram = _weights(24, 96), inputs.T @ inputs
    weights -= weights @ torch.linalg.pinv(inputs) @ inputs * 0.999
    found = solved(weights, gram, 4, 32, symmetric=True).values
    assert float((lengths_on(weights - found, gram) / lengths_on(weights, gram)).max()) > FARTHEST_ROW
    assert _farthest_row(weights, found, gram) < 0.3
    assert _farthest_row(weights, found.roll(1, dims=0), gram) > FARTHEST_ROW


def test_no_calibrated_row_is_farther_on_its_text_than_by_the_nearest_codes() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(64, 96, generator=generator) * 0.1
    inputs = torch.randn(500, 1, generator=generator) @ torch.randn(1, 96, generator=generator)
    gram = inputs.T @ inputs
    found, nearest = (
        solved(weights, gram, 4, 32, symmetric=True).values,
        in_blocks(weights, 4, 32, symmetric=True, search=False).values,
    )
    assert bool((lengths_on(weights - found, gram) <= lengths_on(weights - nearest, gram)).all())
    assert not torch.equal(found, nearest)


def test_calibration_without_correlation_gives_the_nearest_codes() -> None:
    weights = _weights(8, 80)
    found = solved(weights, torch.eye(80), 4, 16, symmetric=False)
    assert torch.equal(found.codes, in_blocks(weights, 4, 16, symmetric=False, search=False).codes)
