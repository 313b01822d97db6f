"""Svitlo's own kernels against torch's results: products, linear layer, attention and activation, with gradients."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from svitlo.config import ModelConfig, TrainingConfig
from svitlo.training.activation import gelu
from svitlo.training.attention import causal_attention
from svitlo.training.loss import Head, VocabularySampler, head_loss
from svitlo.training.model import GPT2, add_embedding_gradient, embedded
from svitlo.training.optimizer import PhaseOptimizer
from svitlo.training.products import add_product, linear, product, product_into, sum_with_product

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_torchs_also_of_views(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = torch.randn(40, 90).to(dtype)
    views = [whole[:, :40], whole[:, 40:80], whole[:, :40].T, whole[:, ::2][:, :40], whole[:, :40].contiguous()]
    for a in views:
        for b in views:
            expected = a.double() @ b.double()
            close = {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
            torch.testing.assert_close(product(a, b).double(), expected, **close)
            torch.testing.assert_close(
                product(a, b, whole[0, :40]).double(), expected + whole[0, :40].double(), **close
            )
            summed = sum_with_product(-0.5, a, 2.0, a, b)
            torch.testing.assert_close(summed.double(), 2 * expected - 0.5 * a.double(), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_go_into_memory_that_is_there_a_slice_at_a_time(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 8).to(dtype), torch.randn(20_000, 8).to(dtype)
    result = torch.full((3, 20_000), torch.nan, dtype=dtype)
    product_into(result, hidden, weight.T)
    torch.testing.assert_close(result, hidden @ weight.T)
    summed = torch.ones(8, 20_000)
    add_product(summed, hidden.T, result, 0.5)
    expected = 1 + 0.5 * (hidden.float().T @ result.float())
    torch.testing.assert_close(summed, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_linear_has_the_gradients_of_torchs() -> None:
    torch.manual_seed(0)
    arguments = [torch.randn(shape, requires_grad=True) for shape in ((9, 5), (5, 7), (7,))]
    x, weight, bias = arguments
    _assert_same_with_gradients(linear(x, weight, bias), torch.addmm(bias, x, weight), arguments)


@pytest.mark.parametrize("length", [1, 100, 128, 130, 256])
@pytest.mark.parametrize("sequences", [1, 2])
def test_attention_by_blocks_is_that_of_the_whole_window(length: int, sequences: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sequences * length, 3 * 24, requires_grad=True)
    before = qkv.detach().clone()
    query, key, value = qkv.view(sequences, length, 3, 3, 8).permute(2, 0, 3, 1, 4)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = expected.transpose(1, 2).reshape(sequences * length, 24)
    _assert_same_with_gradients(causal_attention(qkv, length, 3), expected, [qkv])
    assert qkv.equal(before)


def test_attention_in_bf16_is_that_of_float32_up_to_eight_bits() -> None:
    torch.manual_seed(0)
    rounded = torch.randn(2 * 200, 3 * 64).bfloat16().requires_grad_()
    exact = rounded.detach().float().requires_grad_()
    results = [causal_attention(qkv, 200, 2) for qkv in (rounded, exact)]
    assert results[0].dtype == torch.bfloat16
    factors = torch.randn(2 * 200, 64)
    gradients = [torch.autograd.grad((r * factors).sum(), x)[0] for r, x in zip(results, (rounded, exact), strict=True)]
    for ours, theirs in (results, gradients):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_attention_drops_weights_and_its_gradient_is_the_slope() -> None:
    """Against the difference quotient, with the same weights dropped in both directions."""
    torch.manual_seed(0)
    qkv, factors, direction = torch.randn(200, 3 * 16), torch.randn(200, 16), torch.randn(200, 3 * 16)

    def value(at: Tensor) -> Tensor:
        torch.manual_seed(1)
        return (causal_attention(at, 200, 2, 0.3) * factors).sum(dtype=torch.float64)

    start = qkv.clone().requires_grad_()
    slope = (torch.autograd.grad(value(start), start)[0] * direction).sum().item()
    step = 1e-3
    quotient = ((value(qkv + step * direction) - value(qkv - step * direction)) / (2 * step)).item()
    assert slope == pytest.approx(quotient, rel=1e-2)
    values = torch.cat([torch.zeros(200, 32), torch.ones(200, 16)], dim=1)
    kept = causal_attention(values, 200, 1, 0.3)[100:]
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert kept.std() > 0.01


def test_gelu_is_torchs_with_its_gradient() -> None:
    x = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e4, 1e4])]).requires_grad_()
    _assert_same_with_gradients(gelu(x), functional.gelu(x, approximate="tanh"), [x])
    rounded = x.detach().bfloat16()
    assert gelu(rounded).equal(functional.gelu(rounded, approximate="tanh"))


def _assert_same_with_gradients(ours: Tensor, theirs: Tensor, arguments: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    factors = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * factors).sum(), arguments),
        torch.autograd.grad((theirs * factors).sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_part_of_a_matrix_is_not_multiplied_by_onednns_reference_code(capfd: pytest.CaptureFixture[str]) -> None:
    """That code takes 200 times as long."""
    whole = torch.randn(64, 96)
    for part in (whole[:, :64], whole[:, 32:].T):
        assert _onednn_codes(lambda part=part: product(part, part), capfd) not in (["ref"], [])


@pytest.mark.parametrize(("rows", "columns"), [(96, 32), (32, 96)])
def test_of_a_transposed_and_a_larger_factor_the_smaller_one_is_copied(rows: int, columns: int) -> None:
    inner = 64
    x, gradient = torch.randn(inner, rows), torch.randn(inner, columns)
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        result = product(x.T, gradient)
    copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    assert [math.prod(shape) for shape in copied] == [inner * min(rows, columns)]
    torch.testing.assert_close(result, x.T @ gradient)


@pytest.mark.parametrize("num_sampled", [None, 300])
def test_a_step_multiplies_by_onednns_fast_code(num_sampled: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    """In everything except attention: forward, backward, the head, and Muon's iterations."""
    model = GPT2(ModelConfig(layers=1, width=64, heads=2, positions=64), 10_000)
    optimizer = PhaseOptimizer(model, TrainingConfig(optimizer="muon"))
    tokens, targets = torch.randint(0, 10_000, (2, 2, 64))
    sample = VocabularySampler(torch.ones(10_000), num_sampled).draw(targets.flatten(), 0) if num_sampled else None

    def step() -> None:
        embeddings = embedded(model, tokens)
        hidden = model.transformer(embeddings).flatten(0, 1)
        head = Head(model.lm_head.weight)
        head.begin(sample)
        _, gradient = head.loss_and_gradient(hidden, targets.flatten(), 1.0)
        torch.sum(hidden * gradient).backward()
        add_embedding_gradient(model, tokens, embeddings)
        head.finish()
        optimizer.step(1.0)
        head_loss(hidden.detach(), model.lm_head.weight, targets.flatten())

    codes = _onednn_codes(step, capfd)
    assert len(codes) > 4 * 3 + 3 + 6 * 12
    assert "ref" not in codes


def _onednn_codes(step: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The implementations that oneDNN uses for float32 products."""
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        step()
    ctypes.CDLL(None).fflush(None)
    calls = [line.split(",") for line in capfd.readouterr().out.splitlines() if ",exec," in line]
    return [fields[6].split(":")[0] for fields in calls if fields[5] == "inner_product"]
