"""The head by itself against the whole forward pass of the same model."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedModel
from workbench import build_model

from passes.models import TokenHead, labelled, scored_logits
from passes.models.tasks import Task, task_of

LANGUAGE = [name for name, case in zoo.ZOO.items() if case.task in ("causal-lm", "masked-lm")]


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tokens, without padding and the first four."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    return labels


@pytest.mark.parametrize("name", LANGUAGE)
def test_every_language_model_of_the_zoo_has_a_head_that_gives_its_logits_and_its_loss(name: str) -> None:
    model = zoo.build(name)
    batch = zoo.inputs(name, zoo.ZOO[name])
    labels = labels_of(batch)
    head = TokenHead.of(model)
    assert head is not None
    with torch.no_grad():
        whole = model(**batch, labels=labels)
        with head.apart() as seen:
            assert model(**batch).logits.shape[1] == 1
        chosen, targets = labelled(head.task, labels)
        assert torch.allclose(head.logits(seen.states[chosen]), whole.logits[chosen], rtol=1e-4, atol=1e-5)
        losses, right = head.measured(seen.states[chosen], targets)
        assert float(losses.mean()) == pytest.approx(float(whole.loss), rel=1e-5)
        assert torch.equal(right, whole.logits[chosen].argmax(-1) == targets)
        assert torch.equal(model(**batch).logits, whole.logits)


def test_softcapping_and_scale_matter_in_the_models_that_have_them() -> None:
    """So that the test above can see them."""
    for name, change in {"gemma2": {"final_logit_softcapping": None}, "granite": {"logits_scaling": 1.0}}.items():
        batch = zoo.inputs(name, zoo.ZOO[name])
        assert not torch.allclose(zoo.build(name)(**batch).logits, zoo.build(name, **change)(**batch).logits, atol=1e-4)


def test_bf16_within_rounding() -> None:
    model = build_model("llama").bfloat16()
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    head = TokenHead.of(model)
    assert head is not None
    with torch.no_grad(), head.apart() as seen:
        model(input_ids=ids)
    expected = model(input_ids=ids).logits.float()
    assert torch.allclose(head.logits(seen.states.flatten(0, 1)).float(), expected.flatten(0, 1), atol=0.02)


def test_chunks_give_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    head = TokenHead.of(model)
    assert head is not None
    hidden, targets = torch.randn(11, model.config.hidden_size), torch.arange(11)
    whole = cross_entropy(model.lm_head(hidden), targets, reduction="none")
    monkeypatch.setattr("passes.models.head.CHUNK_ELEMENTS", 4 * head.words)
    assert head.chunk == 4
    assert torch.allclose(head.losses(hidden, targets), whole, atol=1e-6)
    assert not head.losses(hidden[:0], targets[:0]).numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_several_alike_is_the_first_as_argmax_has_it(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 4, (64, 9), generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[0, 3] = torch.nan
    targets = torch.randint(0, 9, (64,), generator=torch.Generator().manual_seed(3))
    targets[1:30] = logits[1:30].argmax(1)
    _, right = scored_logits(logits, targets)
    assert right[1:].tolist() == (logits.argmax(1) == targets)[1:].tolist()
    assert not right[0]


def test_the_head_reads_first_positions_without_gaps() -> None:
    """Else torch copies the head's weight for every row of a batch."""
    model, read = build_model("llama"), list[torch.Tensor]()
    head = TokenHead.of(model)
    assert head is not None
    model.lm_head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad(), head.apart():
        model(input_ids=torch.zeros(3, 5, dtype=torch.int64))
    assert read[0].shape[:2] == (3, 1)
    assert read[0].is_contiguous()


class Mixing(LlamaForCausalLM):
    """Its logits at a position depend on the next one's."""

    def forward(self, input_ids: object = None, **kwargs: object) -> object:  # type: ignore[override]
        output = super().forward(input_ids, **kwargs)  # type: ignore[arg-type]
        output.logits = output.logits + output.logits.flip(1)
        return output


class Costly(LlamaForCausalLM):
    """Its loss is more than cross-entropy."""

    def forward(self, input_ids: object = None, **kwargs: object) -> object:  # type: ignore[override]
        output = super().forward(input_ids, **kwargs)  # type: ignore[arg-type]
        output.loss = None if output.loss is None else output.loss + 0.1
        return output


@pytest.mark.parametrize("kind", [Mixing, Costly])
def test_a_model_whose_logits_or_loss_are_more_has_none(kind: type[PreTrainedModel]) -> None:
    model = kind(build_model("llama").config).eval()
    assert TokenHead.of(model) is None
    assert task_of(model) is Task.CAUSAL_LM


@pytest.mark.parametrize("name", ["bert-question-answering", "t5", "vit"])
def test_other_tasks_have_none(name: str) -> None:
    assert TokenHead.of(zoo.build(name)) is None


def test_a_head_whose_tied_weight_wants_a_gradient_trains() -> None:
    for tied in (False, True):
        model = zoo.build("llama", tie_word_embeddings=tied)
        head = TokenHead.of(model.requires_grad_(False))
        assert head is not None
        assert not head.trains
        model.model.embed_tokens.weight.requires_grad_(True)
        assert head.trains is tied
        assert head.reads([model.model.embed_tokens.weight]) is tied
