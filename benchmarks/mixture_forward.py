"""A forward pass through four experts: our one wide gated LoRA against PEFT's LoRA, Arrow and X-LoRA.

SmolLM2-135M, 16 x 23 tokens, rank 8 on the MLP, CPU. Every side runs the same base model on the same tokens.
"""

import copy
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from peft.tuners.lora import ArrowConfig
from timing import compare, parse_options, report, time_alternating

from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.models.lora_moe import GateSettings, attach_experts

EXPERTS, RANK, BATCH, TOKENS = 4, 8, 16, 23
TARGETS = ["gate_proj", "up_proj", "down_proj"]


def make_adapters(base: torch.nn.Module, folder: Path) -> list[Path]:
    """Adapters with small random B, as PEFT saves them."""
    paths = []
    for index in range(EXPERTS):
        torch.manual_seed(index)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
        model = get_peft_model(copy.deepcopy(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(folder / str(index))
        paths.append(folder / str(index))
    return paths


def main() -> None:
    """Measure and report."""
    options = parse_options(__doc__ or "")
    torch.set_num_threads(2)
    base = load_base("smollm2-135m", "cpu").model.eval()
    tokens = torch.randint(10, 40_000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        paths = make_adapters(base, Path(name))
        wide = copy.deepcopy(base)
        mixture = attach_experts(
            wide, [read_adapter(path, wide) for path in paths], GateSettings(mode="token", top_k=2)
        )
        mixture.draw_gate_weights(0)
        lora = PeftModel.from_pretrained(copy.deepcopy(base), paths[0]).eval()
        arrow = create_arrow_model(
            base_model=copy.deepcopy(base),
            task_specific_adapter_paths=[str(path) for path in paths],
            arrow_config=ArrowConfig(top_k=2),
        ).eval()
        uncached = copy.deepcopy(base)
        uncached.config.use_cache = False  # X-LoRA asks for it; no side keeps a cache here
        xlora = get_peft_model(
            uncached,
            XLoraConfig(
                task_type="CAUSAL_LM",
                hidden_size=base.config.hidden_size,
                adapters={str(index): str(path) for index, path in enumerate(paths)},
                top_k_lora=2,
            ),
        ).eval()
        models = {"bare": base, "peft_lora": lora, "wide_lora": wide, "peft_arrow": arrow, "peft_xlora": xlora}

        def forward(model: torch.nn.Module):
            def call() -> None:
                with torch.no_grad():
                    model(input_ids=tokens, use_cache=False)

            return call

        sides = {name: forward(model) for name, model in models.items()}
        seconds = time_alternating(sides, rounds=5 if options.quick else 20)
    report(
        compare(seconds, "bare") | compare({k: seconds[k] for k in ("peft_arrow", "wide_lora")}, "wide_lora"), options
    )


if __name__ == "__main__":
    main()
