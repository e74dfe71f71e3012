"""Training of whatever parameters of a model require a gradient: a LoRA adapter, or the routers of a mixture.

Batches, order, learning rate and checkpoints are fixed by the settings and the seed, so the same run on the same CPU
gives the same bytes, interrupted or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import OptimSettings
from metamoe_backend.errors import ConfigError, StopRequested
from metamoe_backend.memory import is_out_of_memory, list_training_remedies, make_memory_error
from metamoe_backend.stage import Context
from metamoe_backend.train.checkpoints import find_checkpoint, require_room
from metamoe_backend.train.examples import (
    Example,
    collate,
    compute_padding_share,
    count_steps,
    plan_batches,
    sorted_batches,
)
from metamoe_backend.train.team import Team, find_team

if TYPE_CHECKING:
    import torch

    from metamoe_backend.train.trainer import AnswerTrainer, AuxiliaryLoss, BeforeForward


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training did. The model itself holds the trained parameters."""

    steps: int
    """Optimizer steps done, those before an interruption included."""
    tokens: int
    """Tokens read, padding left out."""
    metrics: pd.DataFrame
    """Columns step, name, value: rows for the table `metric`; those emitted at an earlier stop are left out."""
    stop: StopRequested | None
    """A person asked to stop and save: publish what there is, then raise this."""


def run_training(
    model: Any,
    examples: Sequence[Example],
    held_back: Sequence[Example],
    optim: OptimSettings,
    context: Context,
    *,
    device: "torch.device",
    pad_token: int,
    processes: int = 1,
    before_forward: "BeforeForward | None" = None,
    auxiliary_loss: "AuxiliaryLoss | None" = None,
) -> TrainingResult:
    """Train the parameters of `model` that require a gradient, on `device`, where the model already lies.

    `model` is a causal language model of transformers, bare or wrapped by PEFT. Checkpoints go to `context.scratch`;
    training goes on from the newest complete one. `before_forward(batch)` is called before every forward pass, with
    `batch["extra"]` [B, E] where the examples carry vectors; `auxiliary_loss()` after every training pass.

    With several `processes` every one calls this, and trains its share of each batch (`train.team`); it returns in the
    first one only, in the others it raises `StopRequested`.

    Raises `ConfigError` when there is nothing to train on, the loss becomes NaN or the device's memory is too small,
    and `StopRequested` on a cancel.
    A stop-and-save returns normally, with `stop` set.
    """
    from metamoe_backend.train.trainer import StopTogether

    if not len(examples):
        raise ConfigError("There are no questions to train on; choose another plan, split or limit.")
    team = find_team(processes)
    _require_reporters(optim)
    _silence()
    lengths = np.array([len(example.tokens) for example in examples])
    steps = count_steps(len(examples), optim.steps, optim.epochs, optim.batch_size)
    planned = plan_batches(lengths, optim.batch_size, steps, optim.seed)
    _log_plan(model, examples, held_back, planned, compute_padding_share(lengths, planned), context)
    trainer = _make_trainer(
        model, examples, planned, optim, context, device, pad_token, before_forward, auxiliary_loss, team
    )
    reporter = _add_reporter(trainer, held_back, optim, context, steps) if team.is_first else None
    trainer.add_callback(StopTogether(team))  # after the reporter, which may be asked to stop
    found = find_checkpoint(context.scratch)
    require_room(context.scratch, sum(values.numel() for values in model.parameters() if values.requires_grad))
    if found:
        context.log(f"Going on from {found.name}.")
    try:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        at = f" at batches of {planned.shape[1]} questions of up to {lengths.max()} tokens"
        raise make_memory_error(str(device), at, list_training_remedies(optim)) from None
    if reporter is None:
        raise StopRequested(save=False)
    _require_finite(trainer)
    if optim.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.eval()
    state = trainer.state
    return TrainingResult(
        state.global_step, int(state.num_input_tokens_seen), _make_metric_rows(state.log_history), reporter.stop
    )


def _make_trainer(
    model: Any,
    examples: Sequence[Example],
    planned: np.ndarray,
    optim: OptimSettings,
    context: Context,
    device: "torch.device",
    pad_token: int,
    before_forward: "BeforeForward | None",
    auxiliary_loss: "AuxiliaryLoss | None",
    team: Team,
) -> "AnswerTrainer":
    import torch

    from metamoe_backend.train.trainer import AnswerTrainer, OneDeviceArguments, compute_learning_rate_factor

    args = OneDeviceArguments(
        output_dir=str(context.scratch),
        max_steps=len(planned),
        per_device_train_batch_size=planned.shape[1],
        learning_rate=optim.learning_rate,
        max_grad_norm=1.0,
        seed=(optim.seed + team.rank) % 2**32,  # as much as numpy takes
        save_strategy="steps" if team.is_first else "no",
        save_steps=optim.save_every,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to=list(optim.report_to) if team.is_first else [],
        activation_checkpointing=optim.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if optim.gradient_checkpointing else None,
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        chosen_device=str(device),
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: compute_learning_rate_factor(step, len(planned), optim.warmup_share, optim.final_share),
    )
    return AnswerTrainer(
        model,
        args,
        examples,
        team.share(planned),
        pad_token,
        before_forward,
        auxiliary_loss,
        team,
        optimizers=(optimizer, schedule),
    )


def _add_reporter(
    trainer: "AnswerTrainer", held_back: Sequence[Example], optim: OptimSettings, context: Context, steps: int
) -> Any:
    from metamoe_backend.train.trainer import Reporter, choose_evaluate_every

    def evaluate() -> float:
        return _compute_eval_loss(trainer, held_back, optim.batch_size)

    every = choose_evaluate_every(steps, optim.batch_size, len(held_back))
    reporter = Reporter(context, steps, every, lambda: trainer.last, evaluate if len(held_back) else None, trainer.tell)
    trainer.add_callback(reporter)
    return reporter


def _compute_eval_loss(trainer: "AnswerTrainer", held_back: Sequence[Example], batch_size: int) -> float:
    """Mean loss over the answer tokens of the held-back questions, in nats."""
    import torch

    from metamoe_backend.train.trainer import compute_answer_loss

    model: Any = trainer.model
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for rows in sorted_batches(held_back, batch_size):
            batch = trainer._prepare_inputs(collate(rows, trainer.pad_token))
            tokens = len(batch["targets"])
            total += compute_answer_loss(model, batch, trainer.before_forward).item() * tokens
            count += tokens
    model.train()
    return total / count


def _require_reporters(optim: OptimSettings) -> None:
    for name in optim.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"optim.report_to: {name} is not installed; run `pip install {name}`, or leave it out.")


def _require_finite(trainer: "AnswerTrainer") -> None:
    """The last update has no later loss to show that it failed: look at the parameters themselves."""
    from metamoe_backend.train.trainer import all_finite, trained_parameters

    if not all_finite(trained_parameters(trainer.model).values()):
        raise trainer.make_divergence(trainer.state.global_step)


def _make_metric_rows(history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """The reports that no earlier stop-and-save has handed over, tidy."""
    from metamoe_backend.train.trainer import HANDED_OVER

    reports = list(history)
    if reports and HANDED_OVER in reports[-1]:  # this very stop
        reports.pop()
    marks = [index for index, report in enumerate(reports) if HANDED_OVER in report]
    rows = [
        (int(report["step"]), name, float(value))
        for report in reports[marks[-1] + 1 if marks else 0 :]
        for name, value in sorted(report.items())
        if name != "step"
    ]
    return pd.DataFrame(rows, columns=["step", "name", "value"])


def _log_plan(
    model: Any,
    examples: Sequence[Example],
    held_back: Sequence[Example],
    planned: np.ndarray,
    padding: float,
    context: Context,
) -> None:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in model.parameters())
    context.log(
        f"Training {trained:,} of {everything:,} parameters on {len(examples):,} questions ({len(held_back):,} held "
        f"back): {len(planned):,} steps of {planned.shape[1]}, {padding:.0%} padding."
    )


def _silence() -> None:
    """The reporter reports; the Trainer's own advice does not belong in a run's log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
