"""Hugging Face's Trainer, reduced to what MetaMoE needs: the loss on answers, planned batches, safe checkpoints.

Only trained parameters, the optimizer and the random state are checkpointed, as safetensors and JSON: a checkpoint of
a large model stays small, and nothing that could run code is ever read back.
"""
# ruff: noqa: ARG002 - overridden methods take what the Trainer passes them, needed or not

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

# This module is nothing but subclasses of torch's and transformers' classes, and is imported inside functions only.
import psutil
import torch  # noqa: TID253
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy  # noqa: TID253
from torch.utils.data import DataLoader, Dataset  # noqa: TID253
from transformers import (  # noqa: TID253
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from metamoe_backend.errors import DivergedError, StopRequested
from metamoe_backend.stage import Context
from metamoe_backend.train.checkpoints import find_checkpoint, prune_checkpoints, seal_checkpoint
from metamoe_backend.train.examples import Batch, Example, collate
from metamoe_backend.train.team import Team

BeforeForward = Callable[[Batch], None]
"""Called with each batch just before the model reads it (see `examples` for its tensors)."""
AuxiliaryLoss = Callable[[], "torch.Tensor"]
"""Called after each training forward pass; its scalar is added to the answer loss (a router's balance loss)."""

TRAINED = "trained.safetensors"
OPTIMIZER = "optimizer.safetensors"
OPTIMIZER_SETTINGS = "optimizer.json"
RANDOM = "random.safetensors"
MOST_REPORTS = 400
"""Reports with metrics in one run; between them the run still asks once a second whether it should stop."""
POLL_S = 1.0
MOST_EVALUATIONS = 8
EVALUATION_SHARE = 0.05
"""Evaluations in one run, and the share of its computing time they may take (a training pass costs three reads)."""
HANDED_OVER = "handed_over"
"""Mark in the history of reports: what stands before it was emitted when a person stopped the run."""


def compute_answer_loss(model: Any, batch: Batch, before_forward: BeforeForward | None = None) -> torch.Tensor:
    """Mean cross-entropy over the batch's answer tokens, in nats. The head is computed for these tokens alone."""
    if before_forward is not None:
        before_forward(batch)
    logits = model(input_ids=batch["input_ids"], logits_to_keep=batch["predicts"], use_cache=False).logits
    return cross_entropy(logits.float(), batch["targets"])


def compute_learning_rate_factor(step: int, steps: int, warmup_share: float, final_share: float = 0.0) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then half a cosine towards `final_share`.

    Neither the first nor the last step has rate 0, so that none is wasted.
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    fallen = 0.5 * (1 - math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return 1 - (1 - final_share) * fallen


class PlannedBatches:
    """The batches of all steps, in order, as a DataLoader wants them."""

    def __init__(self, planned: Any) -> None:
        self.planned = planned

    def __len__(self) -> int:
        return len(self.planned)

    def __iter__(self) -> Any:
        return (row.tolist() for row in self.planned)


class Examples(Dataset):
    """Examples by index."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


@dataclass
class OneDeviceArguments(TrainingArguments):
    """Arguments that train on the one device asked for; stock ones take every GPU they see, or cuda:0."""

    chosen_device: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        # Accelerate reads the device from the environment.
        os.environ["ACCELERATE_TORCH_DEVICE"] = self.chosen_device
        super()._setup_devices  # noqa: B018 - sets up accelerate's state
        device = torch.device(self.chosen_device)
        self._n_gpu = 0 if device.type == "cpu" else 1
        if device.index is not None:
            torch.cuda.set_device(device)
        return device


class AnswerTrainer(Trainer):
    """Trains the parameters that require a gradient on the loss of the answers."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        examples: Sequence[Example],
        planned: Any,
        pad_token: int,
        before_forward: BeforeForward | None,
        auxiliary_loss: AuxiliaryLoss | None,
        team: Team,
        **rest: Any,
    ) -> None:
        super().__init__(model=model, args=args, **rest)
        self.examples = Examples(examples)
        self.remove_callback(PrinterCallback)
        self.planned = planned
        self.pad_token = pad_token
        self.before_forward = before_forward
        self.auxiliary_loss = auxiliary_loss
        self.team = team
        self.last: dict[str, float] = {}
        """Answer loss, auxiliary loss and tokens of the newest step."""

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.examples,
            batch_sampler=PlannedBatches(self.planned),
            collate_fn=partial(collate, pad_token=self.pad_token),
            pin_memory=self.args.device.type == "cuda",
        )

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = compute_answer_loss(model, inputs, self.before_forward)
        self.last = {"loss": loss.item(), "tokens": int(inputs["real"].sum())}
        if self.auxiliary_loss is not None:
            auxiliary = self.auxiliary_loss()
            self.last["auxiliary_loss"] = auxiliary.item()
            loss = loss + auxiliary
        return loss

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        self.last = self.team.average(trained, self.last, len(inputs["targets"]))
        if not all(math.isfinite(value) for value in self.last.values()):
            raise self.make_divergence(self.state.global_step + 1)
        return loss

    def make_divergence(self, step: int) -> DivergedError:
        return diverged(step, self.args.learning_rate, Path(str(self.args.output_dir)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: `Reporter` reports."""

    def tell(self, metrics: dict[str, float]) -> None:
        """Hand a report to the trackers that were asked for (tensorboard, mlflow …)."""
        self.callback_handler.on_log(self.args, self.state, self.control, dict(metrics))

    def floating_point_ops(self, inputs: Any) -> int:
        """0: counting would walk over all parameters at every step."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        trained = trained_parameters(self.model)
        if not all_finite(trained.values()):  # the update of this very step: no loss has shown it yet
            raise self.make_divergence(self.state.global_step)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        own = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = self.optimizer.state_dict()
        tensors = {f"{i}.{key}": value for i, kept in state["state"].items() for key, value in kept.items()}
        save_file(tensors, Path(output_dir) / OPTIMIZER)
        settings = {"groups": state["param_groups"], "schedule": self.lr_scheduler.state_dict()}
        (Path(output_dir) / OPTIMIZER_SETTINGS).write_text(json.dumps(settings), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        settings = json.loads((Path(checkpoint) / OPTIMIZER_SETTINGS).read_text(encoding="utf-8"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in load_file(Path(checkpoint) / OPTIMIZER).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": settings["groups"]})
        self.lr_scheduler.load_state_dict(settings["schedule"])

    def _save_rng_state(self, output_dir: str) -> None:
        # Batches are planned beforehand; only dropout draws numbers while training.
        states = {"cpu": torch.random.get_rng_state()}
        if self.args.device.type == "cuda":
            states["cuda"] = torch.cuda.random.get_rng_state(self.args.device)
        save_file(states, Path(output_dir) / RANDOM)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = load_file(Path(checkpoint) / RANDOM)
        torch.random.set_rng_state(states["cpu"])
        if self.args.device.type == "cuda" and "cuda" in states:
            torch.cuda.random.set_rng_state(states["cuda"], self.args.device)


class StopTogether(TrainerCallback):
    """After each step, all processes stop if the first one does."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop = self.team.agree(control.should_training_stop)


class Reporter(TrainerCallback):
    """Tells the context how training goes, asks it whether to stop, and seals checkpoints.

    A report's loss is the mean over the steps since the last report; its tokens_per_s counts the tokens read (padding
    left out) over the time spent training, without evaluation and saving.
    """

    def __init__(
        self,
        context: Context,
        steps: int,
        evaluate_every: int,
        last: Callable[[], dict[str, float]],
        evaluate: Callable[[], float] | None,
        tell: Callable[[dict[str, float]], None],
    ) -> None:
        self.context = context
        self.tell = tell
        self.steps = steps
        self.last = last
        self.evaluate = evaluate
        self.report_every = max(1, steps // MOST_REPORTS)
        self.evaluate_every = evaluate_every
        self.stop: StopRequested | None = None
        self.since: list[dict[str, float]] = []
        self.learning_rate = 0.0
        self.seconds = 0.0
        self.clock = 0.0
        self.told = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.clock = self.told = time.monotonic()
        if state.global_step < self.steps:
            self._ask(state, {})

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.learning_rate = rest["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        self.seconds += time.monotonic() - self.clock
        self.since.append(self.last())
        state.num_input_tokens_seen += int(self.since[-1]["tokens"])
        metrics: dict[str, float] = {}
        # A checkpoint must not swallow the steps since the last report.
        if step % self.report_every == 0 or step == self.steps or control.should_save:
            metrics = self._take_metrics(args.device)
        if self.evaluate and (step % self.evaluate_every == 0 or step == self.steps):
            metrics["eval_loss"] = self.evaluate()
        if metrics or time.monotonic() - self.told >= POLL_S:
            self._ask(state, metrics)
        if self.stop:
            metrics = metrics or self._take_metrics(args.device)
            control.should_save = control.should_training_stop = True
        if metrics:
            state.log_history.append({"step": step, **metrics})
            self.tell(metrics)
        if self.stop:
            # What was logged up to here is handed over now; a run that goes on hands over the rest.
            state.log_history.append({"step": step, HANDED_OVER: 1.0})
        self.clock = time.monotonic()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        scratch = Path(args.output_dir)
        seal_checkpoint(scratch / f"checkpoint-{state.global_step}", state.global_step)
        prune_checkpoints(scratch)
        self.clock = time.monotonic()

    def _take_metrics(self, device: torch.device) -> dict[str, float]:
        steps = self.since
        tokens = sum(step["tokens"] for step in steps)
        metrics = {"loss": sum(step["loss"] for step in steps) / len(steps)}
        if "auxiliary_loss" in steps[0]:
            metrics["auxiliary_loss"] = sum(step["auxiliary_loss"] for step in steps) / len(steps)
        metrics["learning_rate"] = self.learning_rate
        metrics["tokens_per_s"] = tokens / max(self.seconds, 1e-9)
        metrics["memory_mb"] = measure_memory_mb(device)
        if (used := measure_gpu_percent(device)) is not None:
            metrics["gpu_percent"] = used
        self.since, self.seconds = [], 0.0
        return metrics

    def _ask(self, state: TrainerState, metrics: dict[str, float]) -> None:
        self.told = time.monotonic()
        try:
            self.context.progress(state.global_step, self.steps, **metrics)
        except StopRequested as stop:
            if not stop.save:
                raise
            self.stop = stop


def trained_parameters(model: Any) -> dict[str, torch.Tensor]:
    """Copies on the CPU of the parameters that require a gradient, by name."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def choose_evaluate_every(steps: int, batch_size: int, held_back: int) -> int:
    """Steps between two evaluations: at most `MOST_EVALUATIONS` a run, and cheap beside the training."""
    affordable = math.ceil(held_back / (3 * batch_size * EVALUATION_SHARE))
    return max(1, steps // MOST_EVALUATIONS, affordable)


def measure_memory_mb(device: torch.device) -> float:
    """Megabytes (10^6 bytes) held: the process's resident memory, on a GPU the peak of what torch took there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return psutil.Process().memory_info().rss / 1e6


def measure_gpu_percent(device: torch.device) -> float | None:
    """Share of the last moments in which the GPU computed, in percent; None on a CPU and where the driver is silent."""
    if device.type != "cuda":
        return None
    import pynvml

    try:
        return float(torch.cuda.utilization(device))
    except (pynvml.NVMLError, ModuleNotFoundError, RuntimeError):
        return None  # a part of a GPU (MIG) does not tell


def diverged(step: int, learning_rate: float, scratch: Path) -> DivergedError:
    """The error of a training that blew up at `step`, naming the last good checkpoint in `scratch`."""
    kept = find_checkpoint(scratch)
    last = f"the last good checkpoint is {kept.name} in {kept.parent}" if kept else "there was no checkpoint yet"
    return DivergedError(
        f"The loss became NaN at step {step}; {last}. Lower the learning rate (it is {learning_rate:g}) and start anew."
    )


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number is one."""
    return all(bool(torch.isfinite(values).all()) for values in tensors)
