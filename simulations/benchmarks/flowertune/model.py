"""MiniLM with LoRA by Transformers and PEFT alone, and the loop that trains it."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from fedlora.config import MINILM
from fedlora.models import locate, quiet

LABELS = ["negative", "positive"]
MAX_LENGTH = 48  # tokens a row
CLIP = 1.0  # the largest norm of a step's gradient, the default of Transformers' Trainer


def get_model(rank: int) -> Any:
    """A new one, alpha = 2 rank, the head trained too; it draws from the global generator."""
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            locate(MINILM), num_labels=len(LABELS)
        )
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, task_type="SEQ_CLS"))


@lru_cache
def get_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(locate(MINILM))


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows with the columns text and label as a batch, padded to the longest."""
    texts = [row["text"] for row in rows]
    batch = get_tokenizer()(
        texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    return {**batch, "labels": torch.tensor([LABELS.index(row["label"]) for row in rows])}


def fit(model: Any, batches: Iterable[dict[str, Tensor]], lr: float) -> float:
    """A step of AdamW a batch, in place; the mean loss over the steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss = model(**{k: t.to(model.device) for k, t in batch.items()}).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
