"""MixLoRA's side of routing.py: run by an interpreter that has moe-peft, it imports nothing of this project.

`python mixlora.py FOLDER THREADS` loads FOLDER/model and FOLDER/experts.safetensors, then answers lines of JSON [side,
pass, rows, width] on its input with a line of JSON {"cpu": seconds, "wall": seconds} of one pass. Sides: mixlora, and
bare, the same model by this environment's transformers. Passes: forward, and step (mixlora only).
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["MOE_PEFT_EXECUTOR_TYPE"] = "CPU"
import torch
from moe_peft import LLMBatchConfig, LLMModel, LLMModelInput, adapter_factory
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

NAME, EXPERTS = "experts", 4


def load_mixture(folder: Path) -> Any:
    """The base model with the mixture; its dropout, which moe-peft asks for and never ends, is off in every pass."""
    model = LLMModel.from_pretrained(str(folder / "model"), device="cpu", load_dtype=torch.float32)
    config = adapter_factory(
        peft_type="MIXLORA", adapter_name=NAME, routing_strategy="mixlora", num_experts=EXPERTS, top_k=2, r=8,
        lora_alpha=16, lora_dropout=0.05, target_modules=["gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    model.init_adapter(config, load_file(folder / "experts.safetensors"))
    for layer in model.model_.layers_:
        for linear in layer.mlp_.state_dict().values():
            for lora in linear.loras_.values():
                lora.eval()
    return model


def make_input(tokens: torch.Tensor, labels: torch.Tensor | None) -> LLMModelInput:
    """A batch for the one mixture; without the router's own loss, which the other sides do not compute either."""
    batch = LLMBatchConfig(adapter_name_=NAME, batch_start_idx_=0, batch_end_idx_=len(tokens))
    return LLMModelInput(
        batch_configs_=[batch], batch_tokens_=tokens, batch_labels_=labels, batch_masks_=torch.ones_like(tokens),
        output_router_logits_=False, inference_mode_=labels is None,
    )  # fmt: skip


def make_passes(folder: Path) -> dict[tuple[str, str], Callable[[torch.Tensor], object]]:
    """What is timed, by side and pass."""
    model = load_mixture(folder)
    bare = AutoModelForCausalLM.from_pretrained(folder / "model", torch_dtype=torch.float32).eval()
    trained = list(model.get_adapter_weight_dict(NAME).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    @torch.no_grad()
    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return model(make_input(tokens, None))[0].logits

    def step(tokens: torch.Tensor) -> None:
        model(make_input(tokens, tokens))[0].loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def forward_bare(tokens: torch.Tensor) -> torch.Tensor:
        return bare(input_ids=tokens, use_cache=False).logits

    return {("mixlora", "forward"): forward, ("mixlora", "step"): step, ("bare", "forward"): forward_bare}


def main() -> None:
    """Answer until the input ends."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    passes = make_passes(folder)
    for line in sys.stdin:
        side, kind, rows, width = json.loads(line)
        tokens = torch.randint(10, 40_000, (rows, width), generator=torch.Generator().manual_seed(0))
        cpu, wall = time.process_time(), time.perf_counter()
        passes[side, kind](tokens)
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print("\n" + json.dumps(spent), flush=True)


if __name__ == "__main__":
    main()
