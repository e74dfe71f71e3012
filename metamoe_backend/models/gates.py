"""Gates: pure functions from router scores to weights over experts. E experts; B questions; S tokens.

A score is what a gate chooses by: `score_linear` is learnt, `score_arrow` and `score_phatgoose` compare a token with
one direction per expert. Every gate sums to 1 over the experts (unit scale: experts act as strongly as they were
trained to), except for a question sent to the bare base model, whose gates are all 0, and `own_sigmoid`, which only
trains.
"""

# This module is nothing but functions of tensors, and is imported inside functions only.
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.nn import functional  # noqa: TID253

SMALLEST_PROBABILITY = 1e-12
"""Keeps log p finite: an expert of probability 0 is improbable, not forbidden."""


def score_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W_g; `x` [..., inputs], `weight` [E, inputs] -> [..., E], in float32."""
    return functional.linear(x.float(), weight, bias)


def score_arrow(x: Tensor, directions: Tensor) -> Tensor:
    """|v_e . x| for the top right singular vector v_e of each expert's B_e A_e. (Arrow, arXiv 2405.11157)

    `directions` [E, inputs], unit vectors, or 0 for an expert that does not adapt the module: its score is -inf.
    """
    return _only_those_there(functional.linear(x.float(), directions).abs(), directions)


def score_phatgoose(x: Tensor, gates: Tensor) -> Tensor:
    """Product of the standardised token and the standardised gate vector, over sqrt(inputs). (arXiv 2402.05859, eq. 3)

    Standardised: mean 0 and standard deviation 1 over the `inputs`; so this is sqrt(inputs) times their correlation.
    `gates` [E, inputs]; a gate vector of 0 (the expert is not at this module) scores -inf.
    """
    size = x.shape[-1]
    own = functional.layer_norm(gates.float(), (size,), eps=1e-12)
    scores = functional.linear(functional.layer_norm(x.float(), (size,), eps=1e-12), own) / size**0.5
    return _only_those_there(scores, gates)


def find_directions(a: Tensor, b: Tensor) -> Tensor:
    """The top right singular vector of B A, up to its sign; `a` [rank, inputs], `b` [outputs, rank] -> [inputs].

    With A^T = Q R, B A = (B R^T) Q^T, so it is Q times the top right singular vector of B R^T [outputs, rank]; B A is
    never formed. A delta of 0 gives 0.
    """
    q, r = torch.linalg.qr(a.double().T)
    inner = b.double() @ r.T
    if not inner.any():
        return torch.zeros(a.shape[1])
    return (q @ torch.linalg.svd(inner, full_matrices=False).Vh[0]).float()


def _only_those_there(scores: Tensor, directions: Tensor) -> Tensor:
    absent = ~directions.any(dim=-1)
    return scores.masked_fill(absent, -torch.inf) if absent.any() else scores


def token_top_k(logits: Tensor, k: int) -> Tensor:
    """Softmax over the k largest of `logits` [..., E], 0 elsewhere; -> [..., E]. (arXiv 2408.15915, MixLoRA)

    G = softmax(top-k(x W_g)). Experts at -inf get 0 even when fewer than k are left; if none is left, all are 0.
    With k = 1 the forward value is 1 for the chosen expert and the gradient is the softmax's (`hard`).
    """
    if k == 1:
        return hard(logits)
    values, chosen = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.zeros_like(logits).scatter(-1, chosen, _safe_softmax(values))


def hard(logits: Tensor) -> Tensor:
    """1 for the largest of `logits` [..., E], 0 elsewhere, with the softmax's gradient (straight-through).

    Without it one chosen expert would always weigh softmax of one number = 1, and a router could not learn.
    """
    soft = _safe_softmax(logits)
    one = torch.zeros_like(soft).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return one * (logits > -torch.inf) + (soft - soft.detach())


def dense(logits: Tensor) -> Tensor:
    """Softmax over all experts; any shape [..., E]. (LoRAMoE, arXiv 2312.09979)"""
    return _safe_softmax(logits)


def own_sigmoid(logits: Tensor, owners: Tensor) -> Tensor:
    """sigmoid(score) for the expert that owns the question, 0 for the others; -> [B, S, E].

    PHATGOOSE trains each expert's gate alone, on the expert's own data; gates share no parameter, so those of all
    experts learn side by side just the same. `logits` [B, S, E]; `owners` [B, E] is 1 for the owner, else 0.
    """
    return logits.sigmoid() * owners.unsqueeze(1)


def two_level(logits: Tensor, log_prior: Tensor, strength: float, k: int, mask: Tensor | None = None) -> Tensor:
    """top-k(x W_g + lambda log p(expert | question)), softmax over the chosen; -> [B, S, E].

    `logits` [B, S, E]; `log_prior` [B, E], natural log, need not be normalised; `strength` is lambda; `mask` [B, E] is
    true for the experts allowed (see `top_m_mask`). With logits 0 and lambda 1 this equals `task_level`.
    """
    scores = logits + strength * log_prior.unsqueeze(1)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
    return token_top_k(scores, k)


def task_level(probabilities: Tensor, k: int) -> Tensor:
    """The k most probable experts of each question, renormalised to 1; `probabilities` [B, E] -> [B, E].

    k = E is soft routing, k = 1 hard routing.
    """
    return token_top_k(compute_log_prior(probabilities), k)


def uniform(experts: int) -> Tensor:
    """1/E for every expert, for every token: [1, 1, E]. (The average of the experts' outputs.)"""
    return torch.full((1, 1, experts), 1.0 / experts)


def compute_log_prior(probabilities: Tensor) -> Tensor:
    """log p, finite everywhere; any shape."""
    return probabilities.clamp_min(SMALLEST_PROBABILITY).log()


def top_m_mask(probabilities: Tensor, m: int) -> Tensor:
    """True for the m most probable experts of each question; [B, E] -> [B, E]."""
    chosen = probabilities.topk(min(m, probabilities.shape[-1]), dim=-1).indices
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, chosen, True)


def goes_to_base(routes: Tensor, experts: int) -> Tensor:
    """Which questions the task-level router sends to the bare base model; `routes` [B, E] or [B, E + 1] -> [B] bool.

    The last of E + 1 columns is the base model's. It wins only if it is more probable than every expert.
    """
    if routes.shape[-1] == experts:
        return torch.zeros(routes.shape[0], dtype=torch.bool, device=routes.device)
    return routes[:, experts] > routes[:, :experts].amax(dim=-1)


def balance_loss(logits: Tensor, gates: Tensor, counted: Tensor) -> Tensor:
    """Load-balance loss of one site (Switch Transformer eq. 4, as in Mixtral's code): E * sum_e f_e P_e; scalar.

    f_e = tokens that chose e / tokens; P_e = mean softmax(logits)_e. `logits` and `gates` [B, S, E]; `counted` [B, S]
    is true for the tokens that count. Equal load gives k, the number of experts chosen per token.
    """
    weight = counted.to(logits.dtype).unsqueeze(-1)
    tokens = weight.sum().clamp_min(1.0)
    chosen = ((gates > 0) * weight).sum(dim=(0, 1)) / tokens
    probable = (logits.softmax(dim=-1) * weight).sum(dim=(0, 1)) / tokens
    return logits.shape[-1] * (chosen.detach() * probable).sum()


def localised_balance_loss(gates: Tensor, counted: Tensor, owners: Tensor | None, delta: float) -> Tensor:
    """Localised balance of one site (LoRAMoE, arXiv 2312.09979, eq. 6-8): Var(Z) / Mean(Z)^2; scalar.

    Z[b, e] = importance of expert e in question b (its gates, summed over the tokens that count), times 1 + delta where
    the question is of the expert's kind and 1 - delta where it is not: within a kind the load is evened out, between
    kinds it is not. The paper prints Var / Mean; with the mean squared (the squared coefficient of variation, as in
    Shazeer et al. 2017) the loss does not depend on the questions' lengths.
    `gates` [B, S, E]; `counted` [B, S]; `owners` [B, E], 1 for the experts of the question's kind; None: no kinds.
    """
    importance = (gates * counted.to(gates.dtype).unsqueeze(-1)).sum(dim=1)
    if owners is not None:
        importance = importance * (1 + delta * (2 * owners - 1))
    return importance.var(unbiased=False) / importance.mean().square().clamp_min(1e-12)


def _safe_softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis; 0 everywhere in a row that is -inf everywhere."""
    empty = (logits == -torch.inf).all(dim=-1, keepdim=True)
    return logits.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
