"""PPO's arithmetic on tensors small enough to work out by hand."""

import math as plain

import pytest
import torch

from alignment.ppo import math

MASK = torch.tensor([[True, True, True], [True, True, False]])


def close(ours: torch.Tensor, expected: list | torch.Tensor):
    torch.testing.assert_close(ours, torch.as_tensor(expected, dtype=ours.dtype))


@pytest.mark.parametrize(("estimator", "expected"), [("k1", [0.0, 0.5, -0.5]), ("k3", [0.0, 0.1065307, 0.1487213])])
def test_kl_is_an_estimate_of_policy_against_reference(estimator: str, expected: list[float]):
    ours = math.kl_divergence(torch.tensor([-1.0, -1.0, -1.5]), torch.tensor([-1.0, -1.5, -1.0]), estimator)
    close(ours, expected)


def test_both_estimators_have_the_same_mean_which_is_the_kl():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in math.KL_ESTIMATORS:
        close((policy.exp() * math.kl_divergence(policy, reference, estimator)).sum(), exact)


def test_the_score_goes_to_the_last_token_and_the_penalty_to_each():
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]])
    ours = math.token_rewards(kl, torch.tensor([1.0, 2.0]), MASK, kl_coef=0.5)
    close(ours, [[-0.05, -0.1, 0.85], [-0.2, 1.75, 0.0]])


def test_advantages_and_returns():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 77.0]])
    values = torch.tensor([[0.5, 0.4, 0.2], [1.0, 0.0, 77.0]])
    advantages, returns = math.advantages_and_returns(rewards, values, MASK, gamma=0.5, lam=0.5)
    # Last first: 1 - 0.2 = 0.8; 0.1 - 0.4 + 0.25 * 0.8 = -0.1; 0.2 - 0.5 - 0.025 = -0.325. And: 2; -1 + 0.25 * 2.
    close(advantages, [[-0.325, -0.1, 0.8], [-0.5, 2.0, 0.0]])
    close(returns, [[0.175, 0.3, 1.0], [0.5, 2.0, 0.0]])


def test_with_gamma_and_lambda_1_a_return_is_what_is_still_to_come():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    _, returns = math.advantages_and_returns(rewards, torch.randn(2, 3), MASK, 1.0, 1.0)
    close(returns, [[6.0, 5.0, 3.0], [9.0, 5.0, 0.0]])


def test_whitened_values_have_mean_0_and_variance_1():
    values = torch.tensor([[1.0, 2, 3], [4, 5, 99]])
    ours = math.whiten(values, MASK)
    close(ours[MASK].mean(), 0.0)
    close(ours[MASK].var(), 1.0)
    assert ours[~MASK].eq(0).all()


def test_moments_of_two_processes_whiten_as_those_of_one():
    values = torch.randn(4, 3) * 3 + 5
    mask = torch.cat([MASK, ~MASK])
    whole = math.whiten(values, mask)
    sums = math.moments(values[:2], mask[:2]) + math.moments(values[2:], mask[2:])
    close(math.whiten(values[:2], mask[:2], sums), whole[:2])


def test_equal_values_whiten_to_0_and_not_to_nan():
    assert math.whiten(torch.ones(2, 3), MASK).eq(0).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # no reward for going beyond the clip
        (0.5, 2.0, -1.0, False),  # a mistake is felt in full
        (0.5, -2.0, 1.6, True),
        (1.5, -2.0, 3.0, False),
    ],
)
def test_the_policy_loss_is_clipped_where_it_would_gain(ratio: float, advantage: float, loss: float, clipped: bool):
    ours, was_clipped = math.policy_loss(
        torch.tensor([plain.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), clip=0.2
    )
    close(ours, [loss])
    assert was_clipped.tolist() == [clipped]


@pytest.mark.parametrize(("value", "loss", "clipped"), [(0.1, 0.405, False), (0.5, 0.32, True), (-0.5, 1.125, False)])
def test_the_value_loss_is_that_of_the_clipped_value_where_that_is_worse(value: float, loss: float, clipped: bool):
    ours, was_clipped = math.value_loss(torch.tensor([value]), torch.zeros(1), torch.ones(1), clip=0.2)
    close(ours, [loss])
    assert was_clipped.tolist() == [clipped]


@pytest.mark.parametrize(("values", "expected"), [([[1.0, 2, 3], [4, 5, 0]], 1.0), ([[3.0, 3, 3], [3, 3, 0]], 0.0)])
def test_explained_variance(values: list, expected: float):
    returns = torch.tensor([[1.0, 2, 3], [4, 5, 99]])
    errors = returns - torch.tensor(values)
    ours = math.explained_variance(math.moments(returns, MASK), math.moments(errors, MASK))
    assert ours == pytest.approx(expected)
    in_two = [sum(math.moments(x[rows], MASK[rows]) for rows in ([0], [1])) for x in (returns, errors)]
    assert math.explained_variance(*in_two) == pytest.approx(expected)


def test_of_returns_that_are_all_the_same_nothing_is_explained():
    returns = torch.full((2, 3), 2.0)
    moments = [math.moments(x, MASK) for x in (returns, returns - 1)]
    assert math.explained_variance(*moments) == 0.0


def test_a_score_is_measured_by_its_siblings():
    scores = torch.tensor([1.0, 2, 6, 10, 10, 10])
    close(math.leave_one_out(scores, 3), [-3.0, -1.5, 4.5, 0, 0, 0])
    assert math.leave_one_out(scores, 1) is scores


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([3.0, 9.0], (2.0, -1.0)), ([9.0, 3.0], (0.0, 6.6))],  # a critic that is wrong begins as the mean
)
def test_the_line_that_foresees_the_scores(scores: list[float], expected: tuple[float, float]):
    values = torch.tensor([[2.0, 2, 2], [5, 5, 99]])
    assert math.fit_line(math.regression_sums(values, torch.tensor(scores), MASK)) == pytest.approx(expected)


@pytest.mark.parametrize("difference", [0.0, 1e-3, 0.019])
def test_the_line_of_values_that_are_all_the_same_is_the_mean(difference: float):
    values = torch.tensor([[1.0], [1 + difference]]).expand(2, 3)
    assert math.fit_line(math.regression_sums(values, torch.tensor([3.0, 8.0]), MASK)) == pytest.approx((0.0, 5.0))


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.1), (12.0, 0.102), (0.0, 0.098), (6.6, 0.101)])
def test_the_kl_coefficient_follows_its_target(kl: float, expected: float):
    assert math.adapted_kl_coef(0.1, kl, target=6.0) == pytest.approx(expected)
