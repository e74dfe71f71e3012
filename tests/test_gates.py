"""Gates: which experts get weight, that the weights sum to 1, and that -inf and the base model's column are safe."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.models import gates


@st.composite
def scores(draw, least_experts=1):
    """Router scores [2, 3, E] and a k."""
    experts = draw(st.integers(least_experts, 6))
    values = draw(st.lists(st.floats(-20, 20), min_size=6 * experts, max_size=6 * experts))
    k = draw(st.integers(1, experts))
    return torch.tensor(values, dtype=torch.float32).reshape(2, 3, experts), k


@st.composite
def probabilities(draw, experts):
    """Two rows of probabilities over `experts`, some of them 0."""
    raw = draw(st.lists(st.integers(0, 9), min_size=2 * experts, max_size=2 * experts))
    values = torch.tensor(raw, dtype=torch.float32).reshape(2, experts) + torch.eye(experts)[0]
    return values / values.sum(-1, keepdim=True)


def sums_to_one(weights: torch.Tensor) -> bool:
    return torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)


@given(scores())
def test_token_top_k_gives_k_experts_all_the_weight(drawn):
    logits, k = drawn
    weights = gates.token_top_k(logits, k)
    assert sums_to_one(weights)
    assert ((weights > 0).sum(-1) == k).all()
    least_chosen = torch.where(weights > 0, logits, torch.inf).amin(-1)
    most_left_out = torch.where(weights > 0, -torch.inf, logits).amax(-1)
    assert (least_chosen >= most_left_out).all()


@given(st.data(), scores(least_experts=2))
def test_two_level_keeps_to_the_mask(data, drawn):
    logits, k = drawn
    prior = data.draw(probabilities(logits.shape[-1]))
    m = data.draw(st.integers(1, logits.shape[-1]))
    mask = gates.top_m_mask(prior, m)
    weights = gates.two_level(logits, gates.compute_log_prior(prior), 1.0, k, mask)
    assert sums_to_one(weights)
    assert (mask.sum(-1) == m).all()
    assert (weights[~mask.unsqueeze(1).expand_as(weights)] == 0).all()
    # An expert of probability 0 may underflow to weight 0, but never more than k have one.
    assert ((weights > 0).sum(-1) <= min(k, m)).all() and torch.isfinite(weights).all()


@given(st.data(), st.integers(1, 6))
def test_two_level_without_token_scores_is_task_level(data, experts):
    prior = data.draw(probabilities(experts))
    k = data.draw(st.integers(1, experts))
    both = gates.two_level(torch.zeros(2, 4, experts), gates.compute_log_prior(prior), 1.0, k)
    assert torch.allclose(both, gates.task_level(prior, k).unsqueeze(1).expand_as(both), atol=1e-6)


def test_task_level_soft_and_hard():
    prior = torch.tensor([[0.5, 0.3, 0.2]])
    assert torch.allclose(gates.task_level(prior, 3), prior)
    assert torch.allclose(gates.task_level(prior, 2), torch.tensor([[0.625, 0.375, 0.0]]))
    assert gates.task_level(prior, 1).tolist() == [[1.0, 0.0, 0.0]]


def test_prior_strength_decides_between_token_and_question():
    logits, prior = torch.tensor([[[3.0, 0.0]]]), gates.compute_log_prior(torch.tensor([[0.1, 0.9]]))
    assert gates.two_level(logits, prior, 0.0, 1).tolist() == [[[1.0, 0.0]]]
    assert gates.two_level(logits, prior, 10.0, 1).tolist() == [[[0.0, 1.0]]]


@given(st.integers(1, 9))
def test_uniform(experts):
    assert gates.uniform(experts).shape == (1, 1, experts)
    assert sums_to_one(gates.uniform(experts))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_masked_rows_are_zero_and_never_nan(k):
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf], [-torch.inf] * 3]).requires_grad_()
    weights = gates.token_top_k(logits, k)
    assert torch.allclose(weights, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    (weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.isfinite(logits.grad).all()


@given(scores(least_experts=2))
@settings(max_examples=30)
def test_hard_is_one_forward_and_soft_backward(drawn):
    logits, _ = drawn
    value = torch.arange(1.0, logits.shape[-1] + 1)
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    chosen = gates.hard(first)
    assert set(chosen.unique().tolist()) <= {0.0, 1.0} and (chosen.sum(-1) == 1).all()
    (chosen * value).sum().backward()
    (second.softmax(-1) * value).sum().backward()
    assert torch.allclose(first.grad, second.grad)


def test_the_base_column_wins_only_when_it_is_the_largest():
    routes = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.1, 0.4], [0.4, 0.2, 0.4]])
    assert gates.goes_to_base(routes, 2).tolist() == [True, False, False]
    assert gates.goes_to_base(routes[:, :2], 2).tolist() == [False, False, False]


def test_balance_loss_is_least_at_equal_load_and_ignores_padding():
    spread = torch.eye(4).repeat(1, 2, 1)[None, 0] * 10.0  # tokens prefer experts in turn
    crowded = torch.zeros(1, 8, 4)
    crowded[..., 0] = 10.0
    real = torch.ones(1, 8, dtype=torch.bool)
    even = gates.balance_loss(spread, gates.token_top_k(spread, 1), real)
    uneven = gates.balance_loss(crowded, gates.token_top_k(crowded, 1), real)
    assert even == pytest.approx(1.0, abs=1e-3) and uneven == pytest.approx(4.0, abs=1e-2)
    half = torch.cat([spread, crowded], 1)
    padded = torch.cat([real, torch.zeros_like(real)], 1)
    assert gates.balance_loss(half, gates.token_top_k(half, 1), padded) == pytest.approx(even.item(), abs=1e-5)
