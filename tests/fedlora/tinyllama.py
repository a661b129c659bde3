"""A Llama of two layers with random weights, and the same as a GGUF file.

Hidden size 32 with 4 heads and 2 of keys and values, intermediate size 64, 64 tokens.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora.streams import forked

LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")
PAIRS = [(first, second) for first in "abcde" for second in "vwxyz"]
WORDS = ["<pad>", "<s>", "</s>", *LETTERS, *map("".join, PAIRS)]
HEADS, KEYS = 4, 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama(std: float = 0.2) -> LlamaForCausalLM:
    """In fp32, with weights of this deviation, the same at each call."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=64,
        initializer_range=std,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with forked(0, "tiny llama"):
        return LlamaForCausalLM(config).eval()


def save(folder: Path) -> Path:
    """The model and its tokenizer as an ordinary folder."""
    llama().save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, **special
    ).save_pretrained(folder)
    return folder


def write_gguf(model: LlamaForCausalLM, path: Path) -> dict[str, torch.Tensor]:
    """Write the model with matrices in Q8_0; returns what they are in fp32 by Llama's names."""
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])  # control, then normal
    writer.add_token_merges([" ".join(pair) for pair in PAIRS])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }} {% endfor %}")
    truth = {}
    for name, tensor in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(_turned(name, tensor.numpy()), kind)
        writer.add_tensor(_named(name), packed, raw_dtype=kind)
        flat = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
        truth[name] = torch.from_numpy(flat)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth


def _named(name: str) -> str:
    other = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in other:
        return f"{other[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def _turned(name: str, weight: np.ndarray) -> np.ndarray:
    """GGUF has the rows of queries and keys pair by pair, Llama half by half of a head."""
    heads = HEADS if "q_proj" in name else KEYS if "k_proj" in name else 0
    if not heads:
        return weight
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
