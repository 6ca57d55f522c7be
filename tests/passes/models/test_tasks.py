from __future__ import annotations

import pytest
import torch
import transformers as hf
import zoo
from transformers import BertForMaskedLM, PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.models import Task, check_loss, model_class, task_of


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_task_of_every_stock_class_is_that_of_the_zoo(name: str) -> None:
    case = zoo.ZOO[name]
    assert task_of(case.model_class) == case.task
    assert task_of(zoo.build(name)) == case.task


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_saved_configuration_names_its_class(name: str) -> None:
    case = zoo.ZOO[name]
    assert model_class(case.config(architectures=[case.model_class.__name__])) is case.model_class


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (hf.LlamaConfig(), hf.LlamaForCausalLM),
        (hf.GPT2Config(), hf.GPT2LMHeadModel),
        (hf.BertConfig(), hf.BertForMaskedLM),
        (hf.BertConfig(is_decoder=True), hf.BertLMHeadModel),
        (hf.BartConfig(), hf.BartForConditionalGeneration),
        (hf.T5Config(), hf.T5ForConditionalGeneration),
        (hf.ViTConfig(), hf.ViTForImageClassification),
        (hf.DeiTConfig(), hf.DeiTForImageClassification),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_without_architectures_the_model_type_decides(config: hf.PreTrainedConfig, expected: type) -> None:
    assert model_class(config) is expected


@pytest.mark.parametrize(
    ("stock", "task"),
    [
        (hf.BartForConditionalGeneration, Task.SEQ2SEQ_LM),
        (hf.BartForCausalLM, Task.CAUSAL_LM),
        (hf.BartForSequenceClassification, Task.SEQUENCE_CLASSIFICATION),
        (hf.DistilBertForQuestionAnswering, Task.QUESTION_ANSWERING),
        (hf.DeiTForImageClassificationWithTeacher, Task.IMAGE_CLASSIFICATION),
        (hf.GPT2ForTokenClassification, Task.TOKEN_CLASSIFICATION),
    ],
)
def test_the_name_of_the_class_decides_where_a_model_type_has_many(stock: type[PreTrainedModel], task: Task) -> None:
    assert task_of(stock) is task


def test_a_class_of_the_users_own_is_known_by_its_suffix_or_its_stock_parent() -> None:
    class MineForTokenClassification(PreTrainedModel):
        pass

    class Changed(hf.BertForSequenceClassification):
        pass

    assert task_of(MineForTokenClassification) is Task.TOKEN_CLASSIFICATION
    assert task_of(Changed) is Task.SEQUENCE_CLASSIFICATION


@pytest.mark.parametrize("bare", [hf.BertModel, hf.ModernBertModel, hf.RobertaModel, hf.Qwen3Model, hf.LlamaModel])
def test_a_text_model_without_a_head_is_for_feature_extraction(bare: type[PreTrainedModel]) -> None:
    assert task_of(bare) is Task.FEATURE_EXTRACTION


def test_a_subclass_that_computes_something_else_has_no_task() -> None:
    class Other(hf.BertModel):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(UnsupportedModelError, match=r"^Other has no task"):
        task_of(Other)


@pytest.mark.parametrize(
    "headless", [hf.T5Model, hf.ViTModel, hf.BertForNextSentencePrediction, hf.ViTForMaskedImageModeling]
)
def test_a_class_without_a_task_is_named(headless: type[PreTrainedModel]) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{headless.__name__} has no task"):
        task_of(headless)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hf.LlamaConfig(architectures=["MineForCausalLM"]), "no class for the class 'MineForCausalLM'"),
        (hf.MistralConfig(architectures=["LlamaForCausalLM"]), "wants a LlamaConfig, but it is a MistralConfig"),
        (hf.ViTConfig(architectures=["ViTModel"]), "ViTModel has no task"),
        (hf.Wav2Vec2Config(), "no class for the model type 'wav2vec2'"),
    ],
)
def test_a_configuration_without_a_usable_class_is_refused(config: hf.PreTrainedConfig, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        model_class(config)


def test_the_labels_that_a_loss_needs() -> None:
    assert Task.QUESTION_ANSWERING.label_names == ("start_positions", "end_positions")
    assert Task.IMAGE_CLASSIFICATION.label_names == ("labels",)


def test_a_class_of_ones_own_without_labels_has_no_loss() -> None:
    class Silent(BertForMaskedLM):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return input_ids

    class Open(BertForMaskedLM):
        def forward(self, input_ids: torch.Tensor, **more: object) -> torch.Tensor:  # type: ignore[override]
            return input_ids

    with pytest.raises(UnsupportedModelError, match="Silent has no loss, its forward takes no labels: load it as Bert"):
        check_loss(Silent, "bert")
    check_loss(Open, "bert")
    check_loss(BertForMaskedLM, "bert")
