"""Distillation against losses written out by hand, with a dense copy of the model as the teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments
from workbench import (
    EVERY_STEP,
    Blocks,
    adapted,
    build_model,
    planned,
    random_kept,
    randomise_adapter,
    relative,
    saved_scores,
    traced,
    tune,
)

from passes.compensation import CompensatePass
from passes.errors import OptionError, PreconditionError
from passes.models import Adapter, MaskedModel, masked, task_of
from passes.options import CompensateOptions, DistillOptions, ImportanceOptions, LoraOptions
from passes.pipeline import Program
from passes.tuning import AttachPass
from passes.tuning.distill import DistillTrainer
from passes.tuning.divergence import Output, Pair, hidden_error, pairs
from passes.tuning.teacher import FrozenBase


def batch() -> dict[str, torch.Tensor]:
    """Four rows of 12 tokens: one padded on the left, one whose prompt bears no labels."""
    ids = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[2, :8] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def disturbed(*, dropout: float = 0.0) -> tuple[Program, PreTrainedModel]:
    """A program under masks whose compensated model wears a trained adapter, and the dense model that it was."""
    pristine = build_model("llama", attention_dropout=dropout)
    program = traced(copy.deepcopy(pristine))
    program = planned(program, random_kept(program.traced, 2, 24, seed=3))
    done = CompensatePass(Blocks(), CompensateOptions(ridge=0.0, guard=False), keep_originals=True)(program).program
    return AttachPass(LoraOptions(rank=4, dropout=dropout))(done).program, pristine


def trainer_of(
    program: Program, hooks: MaskedModel, options: DistillOptions, folder: Path, **arguments: Any
) -> DistillTrainer:
    assert isinstance(program.model, PeftModel)
    originals = program.compensation.originals if program.compensation else {}
    teacher = FrozenBase(program.model, hooks.off, originals)
    randomise_adapter(program.model)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **arguments)
    return DistillTrainer(teacher=teacher, distill=options, model=program.model, args=args, train_dataset=Blocks())


def by_hand(
    pristine: PreTrainedModel, student: Mapping[str, Any], inputs: dict[str, torch.Tensor], options: DistillOptions
) -> torch.Tensor:
    """(1 - w) CE + w T² KL + h·(hidden error), position by position."""
    with torch.no_grad():
        teacher = pristine(**inputs, output_hidden_states=True)
    kl, ce, count = torch.zeros(()), torch.zeros(()), 0
    for row in range(4):
        for position in range(11):
            label = int(inputs["labels"][row, position + 1])
            if label == -100:
                continue
            p, q = ((o["logits"][row, position] / options.temperature).softmax(0) for o in (teacher, student))
            kl = kl + (p * (p.log() - q.log())).sum()
            ce = ce - student["logits"][row, position].softmax(0)[label].log()
            count += 1
    errors, real = [], inputs["attention_mask"] == 1
    for expected, actual in zip(teacher["hidden_states"][1:], student["hidden_states"][1:], strict=True):
        gap = sum((expected[r, t] - actual[r, t]).square().sum() for r, t in real.nonzero().tolist())
        size = sum(expected[r, t].square().sum() for r, t in real.nonzero().tolist())
        errors.append(gap / size)
    w, t = options.weight, options.temperature
    return (1 - w) * ce / count + w * t**2 * kl / count + options.hidden_weight * sum(errors) / len(errors)


@pytest.mark.parametrize(
    "options",
    [
        DistillOptions(weight=1.0, temperature=1.0),
        DistillOptions(weight=0.3, temperature=2.5),
        DistillOptions(weight=0.0, hidden_weight=1.0),
        DistillOptions(weight=0.5, hidden_weight=0.7),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_written_out_by_hand(options: DistillOptions, tmp_path: Path) -> None:
    program, pristine = disturbed()
    with masked(program.model, program.traced, program.masks) as hooks:
        trainer = trainer_of(program, hooks, options, tmp_path)
        loss = trainer.compute_loss(program.model, batch())
        adapter = [p for p in program.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, adapter)
        student = program.model(**batch(), output_hidden_states=True)
        expected = by_hand(pristine, student, batch(), options)
        wanted = torch.autograd.grad(expected, adapter)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(relative(actual, other) < 1e-4 for actual, other in zip(gradients, wanted, strict=True))


def test_the_teacher_is_the_dense_model_bit_for_bit_and_all_comes_back(tmp_path: Path) -> None:
    """Masks on, adapter trained, weights compensated, dropout in training mode."""
    program, pristine = disturbed(dropout=0.3)
    model = program.model
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    with masked(model, program.traced, program.masks) as hooks, torch.no_grad():
        trainer = trainer_of(program, hooks, DistillOptions(), tmp_path)
        student = model.eval()(**inputs).logits
        needs = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        model.train()
        answer = trainer._teacher(**inputs)["logits"]
        assert model.training
        assert torch.equal(answer, pristine(**inputs).logits)
        assert not torch.allclose(answer, student, atol=0.1)
        assert torch.equal(model.eval()(**inputs).logits, student)
    assert needs == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert trainer._teacher(**inputs)["logits"].grad_fn is None


def test_the_teacher_of_a_brought_adapter_wears_it_as_it_was() -> None:
    program = adapted(build_model("llama"))
    brought = copy.deepcopy(program.model)
    teacher = FrozenBase(program.model, nullcontext, {})
    randomise_adapter(program.model, seed=11)
    ids = Blocks(3).ids
    with torch.no_grad():
        assert torch.equal(teacher(input_ids=ids)["logits"], brought(input_ids=ids).logits)
        assert not torch.allclose(program.model(input_ids=ids).logits, brought(input_ids=ids).logits, atol=0.01)


def test_only_the_adapter_gets_gradients(tmp_path: Path) -> None:
    program, _ = disturbed()
    with masked(program.model, program.traced, program.masks) as hooks:
        trainer_of(program, hooks, DistillOptions(), tmp_path).compute_loss(program.model, batch()).backward()
    for name, parameter in program.model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".lora_" in name), name


class Uneven(Dataset[dict[str, torch.Tensor]]):
    """Rows with very different numbers of labels."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = Blocks(8).ids[index]
        labels = ids.clone()
        labels[: index + 2] = -100
        return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_loss_does_not_depend_on_accumulation(weight: float, tmp_path: Path) -> None:
    scores, losses = [], []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        folder = tmp_path / str(batch_size)
        tuned = tune(
            disturbed()[0],  # a student that is not its teacher: with weight 1, nothing else has a gradient
            data=Uneven(),  # type: ignore[arg-type]
            steps=1,
            batch_size=batch_size,
            gradient_accumulation=accumulation,
            distill=DistillOptions(weight=weight, hidden_weight=0),
            importance=ImportanceOptions(normalise=False, smoothing=0.0),
            checkpoints=folder,
            save_every=1,
        )
        scores.append(saved_scores(folder, 1))
        losses.append(tuned.history[-1].report.losses[0][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(relative(value, scores[1][name]) < 1e-4 for name, value in scores[0].items())


def test_tuning_with_it_touches_no_base_weight_and_tells_its_cost() -> None:
    program, _ = disturbed()
    before = {name: p.clone() for name, p in program.model.named_parameters() if ".lora_" not in name}
    adapter = Adapter.of(program.model).state
    configuration = program.model.config.to_dict()
    tuned = tune(program, steps=3, distill=DistillOptions(hidden_weight=0.1), schedule=EVERY_STEP)
    after = dict(tuned.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(not torch.equal(value, adapter[name]) for name, value in Adapter.of(tuned.model).state.items())
    assert 0 < tuned.history[-1].report.teacher_share < 1
    assert tuned.model.config.to_dict() == configuration
    assert all(p.requires_grad == (".lora_" in name) for name, p in tuned.model.named_parameters())


def test_distilling_draws_the_masked_model_to_the_dense_one() -> None:
    """With the teacher's loss alone, the divergence on the data falls."""
    program = adapted(build_model("llama"))
    options = DistillOptions(weight=1.0, temperature=1.0)
    tuned = tune(program, data=Blocks(8), steps=40, ratio=0.1, learning_rate=1e-2, distill=options)
    losses = [loss for _, loss in tuned.history[-1].report.losses]
    assert losses[-1] < 0.6 * max(losses[:10])


def test_a_lost_teacher_is_told_before_training() -> None:
    program = traced(build_model("llama"))
    program = planned(program, random_kept(program.traced, 2, 24, seed=3))
    program = AttachPass()(CompensatePass(Blocks(), CompensateOptions(guard=False))(program).program).program
    with pytest.raises(PreconditionError, match="keep_originals=True"):
        tune(program, distill=DistillOptions())


def _batches(name: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    model = zoo.build(name)
    inputs = zoo.inputs(model, zoo.ZOO[name])
    return model, inputs | zoo.labels(zoo.ZOO[name], inputs)


TASKS = [
    "llama",
    "bert",
    "bert-token-classification",
    "bert-sequence-classification",
    "bert-question-answering",
    "vit",
    "t5",
]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_divergence_that_padding_does_not_enter(name: str) -> None:
    """Zero against itself, positive against another model, and blind to logits where no label stands."""
    model, inputs = _batches(name)
    with torch.no_grad():
        one, other = model(**inputs), zoo.build(name, seed=1)(**inputs)
    compared = pairs(task_of(model), inputs, one, other)
    assert len(compared) == (2 if name == "bert-question-answering" else 1)
    for pair in compared:
        assert float(pair.divergence(2.0)) > 1e-3
    for pair in pairs(task_of(model), inputs, one, one):
        assert float(pair.divergence(2.0)) == pytest.approx(0, abs=1e-6)
    if name in ("bert-question-answering", "bert-token-classification"):
        broken = {key: value.clone() for key, value in other.items() if "logits" in key}
        for value in broken.values():
            value[inputs["attention_mask"] == 0] = 99.0
        again = pairs(task_of(model), inputs, one, broken)
        assert [float(p.divergence(2.0)) for p in again] == [float(p.divergence(2.0)) for p in compared]


@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_hidden_states_of_all_stacks_are_compared(name: str) -> None:
    model, inputs = _batches(name)
    with torch.no_grad():
        one, other = (m(**inputs, output_hidden_states=True) for m in (model, zoo.build(name, seed=1)))
    assert float(hidden_error(inputs, one, other)) > 0.1
    assert float(hidden_error(inputs, one, one)) == 0


def _logits(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_several_labels_at_once_are_compared_each_by_itself() -> None:
    teacher, student = _logits((3, 4))
    expected = 0.0
    for row in range(3):
        for label in range(4):
            p, q = (float((each[row, label] / 2).sigmoid()) for each in (teacher, student))
            expected += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = Pair(teacher, student).divergence(2.0, Output.LABELS)
    assert float(found) == pytest.approx(expected / 3, rel=1e-5)


def test_numbers_are_compared_by_their_squares() -> None:
    teacher, student = _logits((5, 1))
    found = Pair(teacher, student).divergence(2.0, Output.NUMBERS) * 2.0**2
    assert float(found) == pytest.approx(float((teacher - student).square().sum()) / 5, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "labels", "expected"),
    [
        ({}, torch.tensor([1]), Output.CLASSES),
        ({"num_labels": 1}, torch.tensor([0.5]), Output.NUMBERS),
        ({"problem_type": "regression"}, torch.tensor([[0.5, 0.5]]), Output.NUMBERS),
        ({"problem_type": "multi_label_classification"}, torch.tensor([[1.0, 0.0]]), Output.LABELS),
        ({}, torch.tensor([[1.0, 0.0]]), Output.LABELS),
    ],
)
def test_what_the_logits_are_follows_from_configuration_and_labels(
    changes: dict[str, object], labels: torch.Tensor, expected: Output
) -> None:
    model = zoo.build("bert-sequence-classification")
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert Output.of(model, labels) is expected
    assert Output.of(zoo.build("llama"), labels) is Output.CLASSES


class WithoutStates:
    """A teacher that gives nothing but its logits."""

    def __init__(self, teacher: FrozenBase) -> None:
        self._teacher, self.model, self.swaps = teacher, teacher.model, teacher.swaps

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        return {"logits": self._teacher(**inputs)["logits"]}


def test_a_model_without_hidden_states_is_distilled_by_its_outputs_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program, pristine = disturbed()
    with masked(program.model, program.traced, program.masks) as hooks:
        trainer = trainer_of(program, hooks, DistillOptions(hidden_weight=3.0), tmp_path)
        ask = trainer._teacher
        trainer._teacher = WithoutStates(ask)
        loss = trainer.compute_loss(program.model, batch())
        student = program.model(**batch(), output_hidden_states=True)
    assert loss.item() == pytest.approx(by_hand(pristine, student, batch(), DistillOptions(hidden_weight=0)).item())
    assert "no hidden states alike" in caplog.text


@pytest.mark.parametrize("wrong", [{"weight": -0.1}, {"weight": 1.1}, {"temperature": 0.0}, {"hidden_weight": -1.0}])
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        DistillOptions(**wrong)
