"""Mixtures as one wide gated LoRA against PEFT's LoRA, Arrow and X-LoRA: forward, training step, generation, memory.

SmolLM2-135M, rank 8 on the MLP, top-2, float32. Every side runs the same base model on the same tokens, in turn:
16 x 128 tokens (quick: 4 x 128), and 1 x 512 (not quick). `train_vs_lora`: a step that trains four experts and their
routers against one that trains one LoRA. `generate`: 64 tokens behind such a batch, with a cache. `qv_vs_bare`: four
experts of rank 16 on q and v, the shape of the seed method's own layer (1.24 on such a machine). `memory`: megabytes
that a training step of 8 x 128 tokens takes at its peak. `--mixlora PYTHON` adds MixLoRA with the same base model,
experts and routers in its own environment (see mixlora.py): `mixlora_vs_its_bare` is against the bare model there.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from peft.tuners.lora import ArrowConfig
from safetensors.torch import save_file
from timing import compare, make_parser, report, time_alternating

from metamoe_backend.models.adapters import AdapterWeights, write_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.models.lora_moe import GateSettings, attach_experts

MLP, QV = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "v_proj")
SHAPES = {"": (16, 128), "_1x512": (1, 512)}
"""Rows and width of a batch, by what is added to a figure's name."""
QUICK_SHAPES = {"": (4, 128)}
OURS: dict[str, tuple[Any, ...]] = {
    "ours": (4,), "ours32": (32,), "ours_arrow": (4, "arrow"), "ours_xlora": (4, "xlora"), "qv": (4, "token", QV, 16),
}  # fmt: skip
FORWARD = {
    "forward_vs_lora": ("ours", "lora"), "forward32_vs_lora": ("ours32", "lora"), "forward_vs_bare": ("ours", "bare"),
    "xlora_vs_ours": ("xlora", "ours"), "arrow_vs_ours": ("arrow", "ours"), "qv_vs_bare": ("qv", "bare"),
    "xlora_vs_our_xlora": ("xlora", "ours_xlora"), "arrow_vs_our_arrow": ("arrow", "ours_arrow"),
}  # fmt: skip
"""Figures of a forward pass: which side is divided by which."""
GENERATE = {
    "generate_vs_lora": ("ours", "lora"), "generate32_vs_lora": ("ours32", "lora"),
    "generate_arrow_vs_ours": ("arrow", "ours"),
}  # fmt: skip
"""The same of generation; X-LoRA, which keeps no cache, would take minutes."""
MIXLORA = {
    "mixlora_vs_ours": ("mixlora", "ours"), "mixlora_vs_its_bare": ("mixlora", "its_bare"),
    "mixlora_train_vs_ours": ("mixlora_step", "our_step"),
}  # fmt: skip
NEW_TOKENS = 64
PARTS = ("forward", "generate", "train", "memory", "mixlora")
Figures = dict[str, dict[str, float]]
Clock = Callable[[], float]


def draw_adapter(model: torch.nn.Module, name: str, targets: tuple[str, ...], rank: int, seed: int) -> AdapterWeights:
    """An adapter of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    linears = {n: m for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in targets}
    a = {n: torch.randn(rank, m.in_features, generator=generator) * 0.02 for n, m in linears.items()}
    b = {n: torch.randn(m.out_features, rank, generator=generator) * 0.02 for n, m in linears.items()}
    return AdapterWeights(name, rank, 2.0 * rank, 2.0, sorted(targets), "", a, b)


def copy_model(base: Any) -> Any:
    """A copy with modules of its own and the base model's weights, which no side changes."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def make_ours(base: Any, experts: int, mode: str = "token", targets: tuple[str, ...] = MLP, rank: int = 8) -> Any:
    """The base model with a mixture attached; the mixture is `.mixture`."""
    model = copy_model(base)
    adapters = [draw_adapter(model, f"e{index}", targets, rank, index) for index in range(experts)]
    model.mixture = attach_experts(model, adapters, GateSettings(mode, 2))
    if mode != "arrow":
        model.mixture.draw_gate_weights(0)
    return model


def make_lora(base: Any) -> Any:
    """PEFT's LoRA of the same shape."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(MLP), task_type="CAUSAL_LM")
    return get_peft_model(copy_model(base), config)


def make_peers(base: Any, folder: Path) -> dict[str, Any]:
    """PEFT's LoRA, Arrow and X-LoRA with the very same experts."""
    paths = []
    for index in range(4):
        paths.append(folder / str(index))
        write_adapter(paths[-1], draw_adapter(base, str(index), MLP, 8, index), "smollm2-135m")
    lora = PeftModel.from_pretrained(copy_model(base), paths[0])
    arrow = create_arrow_model(copy_model(base), [str(path) for path in paths], ArrowConfig(top_k=2))
    uncached = copy_model(base)
    uncached.config.use_cache = False  # X-LoRA asks for it; no side keeps a cache in a forward pass
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=base.config.hidden_size, top_k_lora=2,
        adapters={str(index): str(path) for index, path in enumerate(paths)},
    )  # fmt: skip
    return {"lora": lora, "arrow": arrow, "xlora": get_peft_model(uncached, config)}


def forward(model: Any, tokens: torch.Tensor) -> Callable[[], object]:
    """A pass without gradients."""

    def call() -> None:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)

    return call


def step(model: Any, tokens: torch.Tensor) -> Callable[[], object]:
    """Loss, gradients and an update of what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def call() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def generate(model: Any, tokens: torch.Tensor) -> Callable[[], object]:
    """Greedy continuation of one prompt with a cache."""
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}

    def call() -> None:
        with torch.no_grad():
            model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings)

    return call


def make_trained(base: Any, side: str) -> Any:
    """What `train_vs_lora` and `memory` compare."""
    if side == "lora":
        return make_lora(base)
    model = make_ours(base, 4)
    model.mixture.unfreeze(experts=True)
    return model


def measure_memory(side: str) -> None:
    """Print the megabytes that a training step takes at its peak beside what this process holds before it."""
    base = load_base("smollm2-135m", "cpu").model.eval()
    call = step(make_trained(base, side), draw_tokens(8, 128))
    before = read_mb("VmRSS")
    call()
    print(read_peak_mb() - before)


def read_peak_mb() -> float:
    """Most memory this process has had. Not `getrusage`, whose peak begins with that of the process that started it."""
    return read_mb("VmHWM")


def read_mb(name: str) -> float:
    """A size of this process in megabytes by the kernel's name for it: VmRSS is what it holds now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def draw_tokens(rows: int, width: int) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(10, 40_000, (rows, width), generator=torch.Generator().manual_seed(0))


def run_memory(side: str) -> float:
    """`measure_memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", side]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


class Mixlora:
    """The process of mixlora.py, which times a pass when told to."""

    def __init__(self, python: str, base: Any, folder: Path, threads: int) -> None:
        base.save_pretrained(folder / "model")
        settings = folder / "model" / "config.json"
        config = json.loads(settings.read_text())
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # where its older transformers looks for it
        settings.write_text(json.dumps(config))
        save_file(name_weights(make_ours(base, 4).mixture), folder / "experts.safetensors")
        command = [python, str(Path(__file__).with_name("mixlora.py")), str(folder), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Mixlora":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def time(self, side: str, kind: str, shape: tuple[int, int], cpu: bool) -> float:
        """Seconds of one pass; raises `SystemExit` where the process has ended."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([side, kind, *shape]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["cpu" if cpu else "wall"])
        raise SystemExit("MixLoRA's process ended; its last words stand above.")


def name_weights(mixture: Any) -> dict[str, torch.Tensor]:
    """A mixture's experts and routers by the names that moe-peft gives them."""
    weights = {f"mixlora.{site.removeprefix('model.')}.moe_gate.weight": w.clone()
               for site, w in mixture.get_gate_weights().items()}  # fmt: skip
    for index, adapter in enumerate(mixture.adapters):
        for module in adapter.a:
            name = f"mixlora.{module.removeprefix('model.')}.experts.{index}"
            weights |= {f"{name}.lora_A.weight": adapter.a[module], f"{name}.lora_B.weight": adapter.b[module]}
    return weights


def divide(seconds: dict[str, list[float]], figures: dict[str, tuple[str, str]], shape: str) -> Figures:
    """Each figure's first side by its second, round by round."""
    return {
        f"{figure}{shape}": compare({first: seconds[first], second: seconds[second]}, second)[f"{first}_vs_{second}"]
        for figure, (first, second) in figures.items()
    }


def measure_passes(
    base: Any, shapes: dict[str, tuple[int, int]], rounds: int, clock: Clock, parts: list[str]
) -> Figures:
    """Forward passes and generation, every side in turn."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        models = {name: model.eval() for name, model in make_peers(base, Path(name)).items()}
        models |= {name: make_ours(base, *shape) for name, shape in OURS.items()}
        models["bare"] = base
        for shape, size in shapes.items():
            tokens = draw_tokens(*size)
            if "forward" in parts:
                seconds = time_alternating({n: forward(m, tokens) for n, m in models.items()}, rounds, clock)
                found |= divide(seconds, FORWARD, shape)
            if "generate" in parts:
                sides = {n: generate(models[n], tokens) for n in ("lora", "ours", "ours32", "arrow")}
                found |= divide(time_alternating(sides, max(1, rounds // 2), clock), GENERATE, shape)
    return found


def measure_training(base: Any, shapes: dict[str, tuple[int, int]], rounds: int, clock: Clock) -> Figures:
    """Training steps of one LoRA and of four experts with their routers, in turn."""
    trained = {side: make_trained(base, side) for side in ("lora", "ours")}
    found: Figures = {}
    for shape, size in shapes.items():
        tokens = draw_tokens(*size)
        seconds = time_alternating({n: step(m.train(), tokens) for n, m in trained.items()}, rounds, clock)
        found |= divide(seconds, {"train_vs_lora": ("ours", "lora")}, shape)
    return found


def measure_mixlora(base: Any, shapes: dict[str, tuple[int, int]], rounds: int, options: argparse.Namespace) -> Figures:
    """MixLoRA in its own process and ours in this one, in turn; a first round warms up."""
    clock = time.process_time if options.cpu else time.perf_counter
    model, trained = make_ours(base, 4), make_trained(base, "ours").train()
    found: Figures = {}

    def spend(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    with tempfile.TemporaryDirectory() as name, Mixlora(options.mixlora, base, Path(name), options.threads) as peer:
        for shape, size in shapes.items():
            tokens = draw_tokens(*size)
            sides = {
                "ours": partial(spend, forward(model, tokens)),
                "mixlora": partial(peer.time, "mixlora", "forward", size, options.cpu),
                "its_bare": partial(peer.time, "bare", "forward", size, options.cpu),
                "our_step": partial(spend, step(trained, tokens)),
                "mixlora_step": partial(peer.time, "mixlora", "step", size, options.cpu),
            }
            taken = [{side: call() for side, call in sides.items()} for _ in range(rounds + 1)][1:]
            found |= divide({side: [seconds[side] for seconds in taken] for side in sides}, MIXLORA, shape)
    return found


def measure_peaks(runs: int) -> Figures:
    """Memory of a training step of each side, `runs` processes each."""
    found: Figures = {}
    for side in ("lora", "ours"):
        peaks = sorted(run_memory(side) for _ in range(runs))
        found[f"memory_{side}_mb"] = {"median": peaks[runs // 2], "min": peaks[0], "max": peaks[-1], "n": runs}
    return found


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=2, help="one, where others compute on the same cores")
    parser.add_argument("--cpu", action="store_true", help="processor time, not wall time: where others compute")
    parser.add_argument("--rounds", type=int, help="how often each side is timed: 5, quick 2")
    parser.add_argument("--mixlora", metavar="PYTHON", help="interpreter that has moe-peft==2.0.2")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--memory", choices=["lora", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        measure_memory(options.memory)
        return
    rounds, shapes = (2, QUICK_SHAPES) if options.quick else (5, SHAPES)
    rounds = options.rounds or rounds
    clock = time.process_time if options.cpu else time.perf_counter
    base = load_base("smollm2-135m", "cpu").model.eval()
    figures: Figures = {}
    if {"forward", "generate"} & set(options.only):
        figures |= measure_passes(base, shapes, rounds, clock, options.only)
    if "train" in options.only:
        figures |= measure_training(base, shapes, rounds, clock)
    if "mixlora" in options.only and options.mixlora:
        figures |= measure_mixlora(base, shapes, rounds, options)
    if "memory" in options.only:
        figures |= measure_peaks(1 if options.quick else 3)
    report(figures, options)


if __name__ == "__main__":
    main()
