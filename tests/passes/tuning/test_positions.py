"""The loss by positions against the formula in fp64, and training by it against training with whole logits."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from peft import PeftModel
from torch.nn.functional import cross_entropy, kl_div
from transformers import Trainer, TrainingArguments
from workbench import Blocks, adapted, build_model, planned, random_kept, randomise_adapter, relative, traced

from passes.models import TokenHead, masked
from passes.options import DistillOptions, LoraOptions
from passes.tuning import AttachPass
from passes.tuning.distill import DistillTrainer
from passes.tuning.lean import LeanTrainer
from passes.tuning.positions import Mixture, Side, summed_loss
from passes.tuning.teacher import FrozenBase

HEADS = ["qwen3", "gemma2", "granite", "cohere", "gpt2", "opt", "bert", "mixtral"]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradient_are_the_formulas_in_fp64(dtype: torch.dtype, allowed: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    head, other = (torch.randn(40, 8, generator=generator).to(dtype) for _ in range(2))
    states, expected = (torch.randn(11, 8, generator=generator).to(dtype) for _ in range(2))
    targets = torch.randint(0, 40, (11,), generator=generator)
    sides = [
        Side(hidden=hidden, logits=lambda rows, head=weight: rows @ head.T, chunk=4)
        for hidden, weight in ((states.requires_grad_(), head), (expected, other))
    ]
    mixture = Mixture(label=0.3, teacher=0.7 * temperature**2, temperature=temperature)
    found = summed_loss(sides[0], targets, mixture, sides[1])
    (gradient,) = torch.autograd.grad(found / 5, states)
    wide = states.detach().double().requires_grad_()
    logits, wanted = wide @ head.double().T, expected.double() @ other.double().T
    both = ((each / temperature).log_softmax(1) for each in (logits, wanted))
    divergence = kl_div(*both, reduction="sum", log_target=True)
    loss = 0.3 * cross_entropy(logits, targets, reduction="sum") + 0.7 * temperature**2 * divergence
    (reference,) = torch.autograd.grad(loss / 5, wide)
    assert found.item() == pytest.approx(loss.item(), rel=allowed)
    assert relative(gradient, reference) < allowed


def batch_of(name: str) -> dict[str, torch.Tensor]:
    batch = zoo.inputs(name, zoo.ZOO[name])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[2, :6] = -100
    return {**batch, "labels": labels}


def gradients(trainer: Trainer, batch: dict[str, torch.Tensor], **more: Any) -> list[torch.Tensor]:
    """The loss and the gradients of the adapter."""
    loss = trainer.compute_loss(trainer.model, dict(batch), **more)
    return [loss, *torch.autograd.grad(loss, [p for p in trainer.model.parameters() if p.requires_grad])]


@pytest.mark.parametrize("items", [None, torch.tensor(29)])
@pytest.mark.parametrize("name", HEADS)
def test_training_by_positions_is_training_with_whole_logits(
    name: str, items: torch.Tensor | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softcapping, scales, biases, tied heads, padding, labels that do not count; with a teacher and without."""
    monkeypatch.setattr("passes.models.head.CHUNK_ELEMENTS", 1000)
    model = AttachPass(LoraOptions(rank=4))(traced(zoo.build(name))).program.model
    assert isinstance(model, PeftModel)
    teacher = FrozenBase(model, nullcontext, {})
    randomise_adapter(model)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    values = {"model": model, "args": args, "train_dataset": Blocks()}
    distil = DistillTrainer(teacher=teacher, distill=DistillOptions(temperature=2.0, hidden_weight=0.5), **values)
    trainers = [LeanTrainer(**values), distil]
    lean = [gradients(trainer, batch_of(name), num_items_in_batch=items) for trainer in trainers]
    assert all(trainer._heads and all(trainer._heads.values()) for trainer in trainers)
    monkeypatch.setattr(TokenHead, "of", classmethod(lambda cls, model: None))
    own = gradients(Trainer(**values), batch_of(name), num_items_in_batch=items)
    whole = DistillTrainer(teacher=teacher, distill=DistillOptions(temperature=2.0, hidden_weight=0.5), **values)
    expected = [own, gradients(whole, batch_of(name), num_items_in_batch=items)]
    for found, wanted in zip(lean, expected, strict=True):
        assert found[0].item() == pytest.approx(wanted[0].item(), rel=1e-5)
        assert all(relative(one, other) < 1e-3 for one, other in zip(found[1:], wanted[1:], strict=True))


def test_bf16_under_masks_within_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = planned(
        traced(build_model("llama").bfloat16()), random_kept(traced(build_model("llama")).traced, 2, 24, 3)
    )
    program = AttachPass(LoraOptions(rank=4))(program).program
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    found = []
    with masked(program.model, program.traced, program.masks) as hooks:
        assert isinstance(program.model, PeftModel)
        teacher = FrozenBase(program.model, hooks.off, {})
        randomise_adapter(program.model)
        for _ in range(2):
            trainer = DistillTrainer(
                teacher=teacher, distill=DistillOptions(), model=program.model, args=args, train_dataset=Blocks()
            )
            found.append(gradients(trainer, {**batch_of("llama")}))
            monkeypatch.setattr(TokenHead, "of", classmethod(lambda cls, model: None))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-2)
    flat = [torch.cat([each.float().flatten() for each in some[1:]]) for some in found]
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.999


def test_a_whole_batch_of_logits_is_never_there(tmp_path: Path) -> None:
    program = adapted(build_model("llama"))
    trainer = LeanTrainer(
        model=program.model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=Blocks(),
    )
    seen: list[int] = []
    program.model.get_base_model().lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    assert trainer.head_of(program.model.get_base_model()) is not None
    seen.clear()
    ids = Blocks(2).ids
    trainer._heads[id(program.model.get_base_model())].words = 2**23 // 5  # type: ignore[union-attr]
    trainer.compute_loss(program.model, {"input_ids": ids, "labels": ids})
    assert max(seen) == 5


@pytest.mark.parametrize(("allowed", "times"), [(True, 3), (False, 1)])
def test_a_batch_in_pieces_gives_the_whole_ones_loss_and_gradients(
    allowed: bool, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(build_model("llama")).model
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    ids = Blocks(3).ids
    labels = ids.clone()
    labels[1, :9] = -100
    batch, items = {"input_ids": ids, "labels": labels}, (labels != -100).sum()
    found = []
    for tokens in (1024, ids.shape[1]):
        monkeypatch.setattr("passes.tuning.lean.HOST_TOKENS", tokens)
        trainer = LeanTrainer(in_pieces=allowed, model=model, args=args, train_dataset=Blocks())
        trainer.head_of(model.get_base_model())  # which is found by running the model
        seen: list[int] = []
        handle = model.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        loss = trainer.training_step(model, dict(batch), items)
        handle.remove()
        found.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
        model.zero_grad()
    assert len(seen) == times
    assert all(relative(one, other) < 1e-5 for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_micro_batch_without_labels_counts_as_the_model_has_it(name: str, tmp_path: Path) -> None:
    """Whole, the sum over no label is 0 of all labels of the batch; a mean over no label is nan."""
    model = AttachPass(LoraOptions(rank=2))(traced(zoo.build(name))).program.model
    batch = batch_of(name)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    values = {
        "model": model,
        "args": TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        "train_dataset": Blocks(),
    }
    items = torch.tensor(9)
    expected = Trainer(**values).compute_loss(model, dict(batch), num_items_in_batch=items)
    found = LeanTrainer(**values).compute_loss(model, dict(batch), num_items_in_batch=items)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan() or found.item() == expected.item() == 0
