"""What leaves: a plain PEFT LoRA checkpoint, or the whole model with everything folded in.

Shapes, for a layer of m outputs and n inputs: the adapter is left (m, r) times right (r, n), the
residual P (m, rho) Q (rho, n) plus D (m, n); a checkpoint holds their concatenation as one LoRA
of scale one, lora_B = [left | P | …] and lora_A = [right; Q; …].
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fedlora import basefiles, files
from fedlora.adapters import Adapter
from fedlora.errors import UserError
from fedlora.merging import merged
from fedlora.models import quiet
from fedlora.tasks import Task


def save_peft(
    adapter: Adapter,
    directory: Path,
    base_name: str,
    task_type: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str = "",
) -> None:
    """Write the adapter, as loaded, as a LoRA checkpoint that `PeftModel.from_pretrained` loads.

    Exact for every kind: R goes into B, VeRA becomes diag(b) U and diag(d) V, DoRA stays DoRA, the
    residual is concatenated, the head is among `modules_to_save` whether it was trained or not.

    Args:
        base_name: the name or folder of the model that the adapter belongs to.
        task_type: PEFT's, e.g. "SEQ_CLS".
        card: what README.md says of it, if anything.

    Raises:
        UserError: `directory` exists and is not empty, or a residual lies beside DoRA, which PEFT
            has no form for. Nothing half-written is left behind.
    """
    if adapter.dora and not all(adapter.residual(k).empty for k in adapter.shapes):
        raise UserError(
            "a residual beside DoRA fits into no PEFT checkpoint: export the whole model (--merge)."
        )
    pairs = {module: folded(adapter, module) for module in adapter.shapes}
    prefix = "base_model.model."
    tensors = {f"{prefix}{k}": t.detach() for k, t in adapter.head().items()}
    for module, (left, right) in pairs.items():
        tensors[f"{prefix}{module}.lora_B.weight"] = left
        tensors[f"{prefix}{module}.lora_A.weight"] = right
        if adapter.dora:
            tensors[f"{prefix}{module}.lora_magnitude_vector"] = adapter.magnitude(module)
    config = _config(adapter, {k: left.shape[1] for k, (left, _) in pairs.items()})
    config.base_model_name_or_path = base_name
    config.task_type = task_type
    with _whole(directory) as folder:
        config.save_pretrained(str(folder))
        named = {k: t.cpu().contiguous() for k, t in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _beside(folder, tokenizer, card)


def merge(
    adapter: Adapter,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str = "",
    sources: Sequence[Path] = (),
) -> None:
    """Write the whole model, W0 + delta in the place of W0, for `from_pretrained` to load.

    Under a bf16 base a small delta is rounded away. What the base's folder has and the adapter does
    not change goes along, see `fedlora.basefiles`.

    Args:
        sources: the folders that the base was read from, see `Pretrained.folders`.

    Raises:
        UserError: `directory` exists and is not empty, or see `fedlora.merging.merged`. Nothing
            half-written is left behind.
    """
    plain: Any = merged(adapter)
    if plain.can_generate():
        plain.generation_config = GenerationConfig()  # the base's goes along as it is
    with _whole(directory) as folder:
        with quiet():
            plain.save_pretrained(str(folder))
        _beside(folder, tokenizer, card)
        basefiles.carry(sources, folder)


def _beside(folder: Path, tokenizer: PreTrainedTokenizerBase | None, card: str) -> None:
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    if card:
        (folder / "README.md").write_text(card, "utf-8")


def unused(task: Task) -> PreTrainedTokenizerBase:
    """A task's tokenizer as it is in files: one that was used also knows how it cut and padded the
    last rows, and would write that down."""
    tokenizer = task.pretrained.tokenizer()
    tokenizer.chat_template = task.tokenizer.chat_template
    return tokenizer


def folded(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    """Everything that is added to W0 as two factors, (m, rho) and (rho, n), fp32."""
    pairs = [adapter.factors(module)]
    residual = adapter.residual(module)
    if residual.P is not None and residual.Q is not None:
        pairs.append((residual.P, residual.Q))
    if residual.D is not None:
        pairs.append(_svd(residual.D))
    return torch.cat([p for p, _ in pairs], dim=1), torch.cat([q for _, q in pairs])


def _svd(dense: Tensor) -> tuple[Tensor, Tensor]:
    """D = (U S)(V^T), computed in float64, without what is below D's own fp32 rounding."""
    U, S, Vh = torch.linalg.svd(dense.double(), full_matrices=False)
    noise = S[0] * torch.finfo(torch.float32).eps
    rank = int((noise < S).sum())
    return (U[:, :rank] * S[:rank]).float(), Vh[:rank].float()


def _config(adapter: Adapter, ranks: dict[str, int]) -> LoraConfig:
    """A LoRA of scale one everywhere: alpha is the rank, layer by layer where ranks differ."""
    used: Any = adapter.model.peft_config["default"]
    rank = max(ranks.values())
    others = {k: r for k, r in ranks.items() if r != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=used.target_modules,
        modules_to_save=used.modules_to_save,
        fan_in_fan_out=used.fan_in_fan_out,
        use_dora=adapter.dora,
        inference_mode=True,
    )


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A folder to write into that becomes `directory` once all is written."""
    directory = Path(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise UserError(f"{directory} exists already: name a folder that does not, or empty it.")
    folder = directory.with_name(f".{directory.name}.{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        with files.writing(directory):
            yield folder
            folder.rename(directory)
    except BaseException:
        shutil.rmtree(folder)
        raise
