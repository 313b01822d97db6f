"""The model's size, the tied head, the chunked cross-entropy and the optimizer's pure functions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from svitlo.config import ModelConfig, TrainingConfig
from svitlo.training.loss import CHUNK, head_loss, head_loss_and_gradient
from svitlo.training.model import EMBEDDING, HEAD, build_model, grow_vocabulary, num_parameters
from svitlo.training.optimizer import build_optimizer
from svitlo.training.schedule import learning_rate

TINY = ModelConfig(layers=2, width=64, heads=2, positions=64)


@pytest.mark.parametrize(
    ("shape", "vocab_size", "expected"),
    [
        (ModelConfig(), 50_257, 23_562_560),
        (ModelConfig(), 50_258, 23_562_880),
        (ModelConfig(layers=8, width=512, heads=8), 50_257, 51_082_752),
        (ModelConfig(layers=2, width=128, heads=2), 50_257, 6_862_464),
        (ModelConfig(layers=2, width=128, heads=2, positions=64), 50_257, 6_837_888),
    ],
)
def test_parameter_counts(shape: ModelConfig, vocab_size: int, expected: int) -> None:
    with torch.device("meta"):
        model = build_model(shape, vocab_size)
    model.tie_weights()
    assert num_parameters(model) == expected


def test_growing_the_vocabulary_keeps_the_tie_and_adds_the_mean() -> None:
    old = build_model(TINY, 50_257)
    new = build_model(TINY, 50_258)
    new.load_state_dict(grow_vocabulary(old.state_dict(), 50_258))
    assert new.lm_head.weight.data_ptr() == new.transformer.wte.weight.data_ptr()
    assert new.transformer.wte.weight[:50_257].equal(old.transformer.wte.weight)
    torch.testing.assert_close(new.transformer.wte.weight[50_257], old.transformer.wte.weight.mean(0))
    assert set(grow_vocabulary(old.state_dict(), 50_258)) >= {EMBEDDING, HEAD}


def test_chunked_loss_and_gradient_are_those_of_the_full_softmax() -> None:
    """Sizes around the chunk, in float64-free arithmetic: compared with autograd through the full logits."""
    torch.manual_seed(0)
    for positions in (1, CHUNK - 1, CHUNK, 2 * CHUNK + 3):
        hidden = torch.randn(positions, 32, requires_grad=True)
        weight = torch.randn(500, 32, requires_grad=True)
        targets = torch.randint(0, 500, (positions,))
        expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        expected_hidden, expected_weight = torch.autograd.grad(expected * 0.25, [hidden, weight])

        loss, gradient = head_loss_and_gradient(hidden, weight, targets, 0.25)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert head_loss(hidden, weight, targets) == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(gradient, expected_hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weight.grad, expected_weight, rtol=1e-4, atol=1e-4)


def test_gradients_of_two_micro_batches_add_up() -> None:
    weight = torch.randn(50, 8, requires_grad=True)
    hidden, targets = torch.randn(6, 8), torch.randint(0, 50, (6,))
    head_loss_and_gradient(hidden, weight, targets, 1.0)
    assert weight.grad is not None
    whole = weight.grad.clone()
    weight.grad = None
    head_loss_and_gradient(hidden[:2], weight, targets[:2], 1.0)
    head_loss_and_gradient(hidden[2:], weight, targets[2:], 1.0)
    torch.testing.assert_close(weight.grad, whole)


def test_matrices_decay_and_vectors_do_not() -> None:
    optimizer = build_optimizer(build_model(TINY, 100), TrainingConfig(weight_decay=0.1))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (parameter.ndim >= 2) == (group["weight_decay"] == 0.1)


def test_learning_rate_rises_then_falls_to_its_floor() -> None:
    config = TrainingConfig(learning_rate=1e-3, warmup_fraction=0.1, final_learning_rate_fraction=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (9, 10)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1e-4, rel=0.05)
    assert all(math.isfinite(learning_rate(step, 1, config)) for step in (0, 1))
