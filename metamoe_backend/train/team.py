"""Several processes that train one model, each on a share of every batch.

Trained parameters are few (adapters, gates), so their gradients are simply summed over gloo after each backward pass,
on GPUs as on CPUs: after every step all processes hold the same numbers. The first process alone reports, evaluates,
checkpoints and publishes; when it stops, the others stop. `jobs.team` starts and ends them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metamoe_backend.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a training; a process that trains alone is the first of one."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, planned: Any) -> Any:
        """This process's part of planned batches [steps, questions]: every `size`-th column.

        Raises `ConfigError` when a batch holds fewer questions than there are processes.
        """
        if planned.shape[1] < self.size:
            raise ConfigError(
                f"processes is {self.size}, but a batch holds {planned.shape[1]} questions; lower processes, or raise "
                "optim.batch_size."
            )
        return planned[:, self.rank :: self.size]

    def average(
        self, parameters: "Iterable[torch.nn.Parameter]", figures: dict[str, float], answer_tokens: int
    ) -> dict[str, float]:
        """Give `parameters` the gradient of the whole batch's loss; returns the whole batch's loss and tokens.

        Each process's mean loss weighs as many answer tokens as it is of, so this is the mean over all of them.
        """
        if self.size == 1:
            return figures
        import torch
        from torch import distributed

        learning = list(parameters)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learning]
        own = torch.tensor([1.0, figures["loss"]]) * answer_tokens
        packed = [gradient.float().flatten() * answer_tokens for gradient in gradients]
        sums = torch.cat([*packed, own.to(packed[0]), torch.tensor([figures["tokens"]]).to(packed[0])])
        distributed.all_reduce(sums)
        *whole, (total, loss, tokens) = sums.split([*(each.numel() for each in learning), 3])
        for parameter, gradient in zip(learning, whole, strict=True):
            parameter.grad = (gradient / total).view_as(parameter).to(parameter.dtype)
        return {"loss": float(loss / total), "tokens": int(tokens)}

    def agree(self, stop: bool) -> bool:
        """Whether the first process stops here; all processes must ask."""
        if self.size == 1:
            return stop
        import torch
        from torch import distributed

        word = torch.tensor([int(stop)])
        distributed.broadcast(word, src=0)
        return bool(word.item())


def find_team(processes: int = 1) -> Team:
    """The team of this process; raises `ConfigError` unless it has as many processes as were asked for."""
    from torch import distributed

    there = distributed.is_available() and distributed.is_initialized()
    team = Team(distributed.get_rank(), distributed.get_world_size()) if there else Team(0, 1)
    if team.size != processes:
        raise ConfigError(f"processes is {processes}, but {team.size} works on this; hand the training to the queue.")
    return team
