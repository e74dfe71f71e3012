"""Tiny real models for tests: a two-layer llama with a byte-level tokenizer, and LoRA adapters for it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

HIDDEN = 32
LAYERS = 2
VOCABULARY = 260
"""256 bytes, then <pad>, <eos> and two spare rows."""


def make_tiny_base(folder: Path, seed: int = 0) -> Path:
    """A two-layer llama (hidden 32, grouped-query attention) with random weights, saved under `folder`.

    Its tokenizer is byte-level BPE without merges: any text works, one token per byte, <pad> 256, <eos> 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | {"<pad>": 256, "<eos>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        initializer_range=0.2, pad_token_id=256, eos_token_id=257, bos_token_id=None,
    )  # fmt: skip
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(state)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_tiny_adapter(
    folder: Path,
    base: Path,
    rank: int = 4,
    alpha: float = 8.0,
    targets: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    seed: int = 0,
    size: float = 0.3,
) -> Path:
    """A PEFT LoRA folder for the tiny base at `base`, with random A and random (non-zero) B; `folder` is returned."""
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "q_proj": ("self_attn", hidden, hidden), "k_proj": ("self_attn", hidden, width),
        "v_proj": ("self_attn", hidden, width), "o_proj": ("self_attn", hidden, hidden),
        "gate_proj": ("mlp", hidden, inner), "up_proj": ("mlp", hidden, inner), "down_proj": ("mlp", inner, hidden),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            block, inputs, outputs = shapes[target]
            key = f"base_model.model.model.layers.{layer}.{block}.{target}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * size
            tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * size
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": list(targets), "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
