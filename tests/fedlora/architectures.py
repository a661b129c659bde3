"""Tiny models of random weights of many architectures, by the type of their settings."""

import re
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fedlora.config import Config
from fedlora.streams import forked
from fedlora.tasks import load
from tests.fedlora.tasks import talk

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
BERT = {**LAYERS, **IDS, "intermediate_size": 48, "max_position_embeddings": 130}
BERT |= {"initializer_range": 0.2}
LLAMA = {**BERT, "num_key_value_heads": 2}
HEADS = {**LLAMA, "head_dim": 8}
EXPERTS = {**LLAMA, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 24}
GPT = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
GPT |= {"initializer_range": 0.2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, **IDS}
T5 |= {"decoder_start_token_id": 0}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128}
XLM |= {"pad_index": 0, "bos_index": 1, "eos_index": 2}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
BART |= {**IDS, "init_std": 0.2}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 16}
VISION |= {"num_attention_heads": 2, "patch_size": 8}
MAMBA = {**LAYERS, **IDS, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}
DEEPSEEK = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
DEEPSEEK |= {"v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
LINEAR |= {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "albert": {**BERT, "embedding_size": 16},
    "bart": BART,
    "bert": BERT,
    "big_bird": {**BERT, "block_size": 4, "num_random_blocks": 1},
    "camembert": BERT,
    "canine": {**BERT, "num_hash_buckets": 16},
    "convbert": {**BERT, "embedding_size": 16},
    "deberta": BERT,
    "deberta-v2": BERT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "pad_token_id": 0},
    "electra": {**BERT, "embedding_size": 16},
    "funnel": {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    "gemma3": {"text_config": HEADS, "vision_config": VISION},
    "longformer": {**BERT, "attention_window": 8},
    "mobilebert": {**BERT, "embedding_size": 16, "intra_bottleneck_size": 16},
    "modernbert": BERT,
    "mpnet": BERT,
    "fnet": BERT,
    "opt": {**LAYERS, **IDS, "word_embed_proj_dim": 32, "ffn_dim": 48, "init_std": 0.2},
    "roberta": BERT,
    "t5": T5,
    "roformer": {**BERT, "embedding_size": 32},
    "xlm": XLM,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "pad_token_id": 0},
}
SPEAKERS: dict[str, dict[str, Any]] = {
    "bart": BART,
    "bert": {**BERT, "is_decoder": True},
    "bloom": {**IDS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "cohere": LLAMA,
    "deepseek_v3": {**EXPERTS, **DEEPSEEK, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "falcon": BERT,
    "falcon_h1": {**HEADS, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8},
    "gemma2": HEADS,
    "gemma3": {"text_config": HEADS, "vision_config": VISION},
    "gpt2": GPT,
    "gpt_neo": {**BERT, "attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "gpt_neox": BERT,
    "gpt_oss": {**EXPERTS, "head_dim": 8},
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": LLAMA,
    "lfm2": {**LLAMA, "layer_types": ["conv", "full_attention"]},
    "llama": LLAMA,
    "mamba": {**MAMBA, "time_step_rank": 4},
    "mamba2": MAMBA,
    "mixtral": {**EXPERTS, "head_dim": 8},
    "mpt": {**IDS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "olmoe": EXPERTS,
    "opt": CLASSIFIERS["opt"],
    "phi": BERT,
    "phi3": LLAMA,
    "phimoe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3": HEADS,
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "qwen3_next": {
        **{**EXPERTS, **LINEAR, "head_dim": 8},
        "layer_types": ["linear_attention", "full_attention"],
    },
    "rwkv": {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "xglm": {
        **IDS,
        "d_model": 32,
        "num_layers": 2,
        "attention_heads": 4,
        "ffn_dim": 48,
        "init_std": 0.2,
    },
}
AUTO: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "instruction": AutoModelForCausalLM,
}


def table(task: str) -> dict[str, dict[str, Any]]:
    return CLASSIFIERS if task == "classification" else SPEAKERS


def save(kind: str, task: str, folder: Path) -> Path:
    """Without dropout and noise, whose draws would tell loops apart, and with a tokenizer of words
    that ends every row, and pads with what its settings pad with."""
    settings = AutoConfig.for_model(kind, **_vocabulary(table(task)[kind]))
    for part in (settings, settings.get_text_config()):
        for name, value in vars(part).items():
            if re.search("drop|noise", name) and isinstance(value, float):
                setattr(part, name, 0.0)
    with forked(0, kind):
        model = AUTO[task].from_config(settings)
    talk.save(folder)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<unk>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def _vocabulary(settings: dict[str, Any]) -> dict[str, Any]:
    words = {"vocab_size": 32}
    if "text_config" in settings:
        return {**settings, "text_config": {**settings["text_config"], **words}}
    return {**settings, **words}


def task(kind: str, name: str, folder: Path) -> Any:
    """The task for a saved model."""
    tree = {"model": {"name": str(save(kind, name, folder)), "task": name}}
    config = Config.model_validate({**tree, "data": {"max_length": 32}})
    return load(name)(config, ["no", "yes"] if name == "classification" else [])
