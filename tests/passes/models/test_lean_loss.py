"""The loss in chunks against transformers' own."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import zoo
from transformers.loss.loss_utils import ForCausalLMLoss
from workbench import build_model

from passes.models import lean_loss
from passes.models.lean_loss import causal_loss


def logits_and_labels(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 9, 40, generator=generator)).to(dtype).requires_grad_(True)
    labels = torch.randint(0, 40, (3, 9), generator=generator)
    labels[0, :4] = -100
    return logits, labels


@pytest.mark.parametrize("items", [None, 5, torch.tensor(7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_transformers_own(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, items: int | torch.Tensor | None
) -> None:
    monkeypatch.setattr(sys.modules["passes.models.lean_loss"], "CHUNK_ELEMENTS", 200)  # five rows at a time
    logits, labels = logits_and_labels(dtype)
    expected = ForCausalLMLoss(logits, labels, 40, num_items_in_batch=items)
    (wanted,) = torch.autograd.grad(2 * expected, logits)
    found = causal_loss(logits, labels, 40, num_items_in_batch=items)
    (gradient,) = torch.autograd.grad(2 * found, logits)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert gradient.dtype == dtype
    assert torch.allclose(gradient.float(), wanted.float(), rtol=0.0 if dtype == torch.float32 else 1e-2, atol=1e-7)


def test_the_model_has_its_own_loss_again_and_gives_the_same_number() -> None:
    model = build_model("llama")
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    own = model.loss_function
    expected = model(input_ids=ids, labels=ids).loss
    with lean_loss(model):
        assert model.loss_function is causal_loss
        found = model(input_ids=ids, labels=ids).loss
    assert model.loss_function is own
    assert torch.allclose(found, expected, rtol=1e-6)
    copy.deepcopy(model)


def test_another_loss_is_left_alone() -> None:
    model = zoo.build("bert")
    own = model.loss_function
    with lean_loss(model):
        assert model.loss_function is own
