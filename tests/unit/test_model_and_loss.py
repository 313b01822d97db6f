"""The model's size, the tied head, the chunked cross-entropy and the optimizer's pure functions."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svitlo.config import ModelConfig, TrainingConfig
from svitlo.training import numerics
from svitlo.training.batches import MicroBatch
from svitlo.training.gradient import Gradient
from svitlo.training.loss import CHUNK, Head, VocabularySample, VocabularySampler, head_loss
from svitlo.training.model import (
    EMBEDDING,
    GPT2,
    HEAD,
    add_embedding_gradient,
    embedded,
    grow_vocabulary,
    num_parameters,
)
from svitlo.training.optimizer import POLAR_EXPRESS, Muon, PhaseOptimizer, orthogonalised
from svitlo.training.schedule import learning_rate_fraction

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
        model = GPT2(shape, vocab_size)
    assert num_parameters(model) == expected


def test_growing_the_vocabulary_keeps_the_tie_and_adds_the_mean() -> None:
    old = GPT2(TINY, 50_257)
    new = GPT2(TINY, 50_258, weights=grow_vocabulary(old.state_dict(), 50_258))
    assert new.lm_head.weight.data_ptr() == new.transformer.wte.weight.data_ptr()
    assert new.transformer.wte.weight[:50_257].equal(old.transformer.wte.weight)
    torch.testing.assert_close(new.transformer.wte.weight[50_257], old.transformer.wte.weight.mean(0))
    assert set(grow_vocabulary(old.state_dict(), 50_258)) >= {EMBEDDING, HEAD}


def test_random_weights_are_those_of_the_seed_with_gpt2s_deviations() -> None:
    torch.manual_seed(3)
    model = GPT2(TINY, 1_000)
    torch.manual_seed(3)
    assert all(a.equal(b) for a, b in zip(model.parameters(), GPT2(TINY, 1_000).parameters(), strict=True))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            expected = 0.01 if name.endswith("c_proj.weight") else 0.02  # 0.02 / √(2 × 2 layers)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05)
        else:
            assert bool((parameter == (0 if name.endswith("bias") else 1)).all())


def test_a_model_made_with_weights_is_the_one_they_came_from_and_draws_no_random_numbers() -> None:
    old = GPT2(TINY, 100)
    torch.manual_seed(5)
    new = GPT2(TINY, 100, weights=old.state_dict())
    assert torch.get_rng_state().equal(torch.manual_seed(5).get_state())
    assert [name for name, _ in new.named_parameters()] == [name for name, _ in old.named_parameters()]
    assert all(
        a.equal(b) and a.data_ptr() != b.data_ptr() for a, b in zip(new.parameters(), old.parameters(), strict=True)
    )
    assert new.lm_head.weight is new.transformer.wte.weight


def test_chunked_loss_and_gradient_are_those_of_the_full_softmax() -> None:
    """Sizes around the chunk, without float64, compared with autograd through the full logits."""
    torch.manual_seed(0)
    for positions in (1, 32, CHUNK - 1, CHUNK, 2 * CHUNK + 3):
        hidden = torch.randn(positions, 32, requires_grad=True)
        weight = torch.nn.Parameter(torch.randn(500, 32))
        targets = torch.randint(0, 500, (positions,))
        expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        expected_hidden, expected_weight = torch.autograd.grad(expected * 0.25, [hidden, weight])

        head = Head(weight)
        head.begin()
        loss, gradient = head.loss_and_gradient(hidden, targets, 0.25)
        head.finish()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert head_loss(hidden, weight, targets) == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(gradient, expected_hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weight.grad, expected_weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_sampled", [False, True])
def test_in_bf16_every_matrix_product_is_bf16_and_what_is_kept_is_float32(is_sampled: bool) -> None:
    """Including the head, which is most of the arithmetic. Results are those of float32 up to bf16's eight bits."""
    torch.manual_seed(0)
    model = GPT2(TINY, 100)
    tokens, targets = torch.randint(0, 100, (2, 2, 32))
    batch = MicroBatch(tokens, targets)
    losses, gradients = {}, {}
    for precision in ("fp32", "bf16"):
        model.zero_grad(set_to_none=True)
        gradient = Gradient(model, VocabularySampler(torch.arange(100), 40), precision, phase=1, seed=1)
        with Products() as products:
            losses[precision] = gradient.compute([batch], 0, is_sampled=is_sampled)
        assert products.types == {numerics.DTYPES[precision]}
        gradients[precision] = [p.grad for p in model.parameters() if p.grad is not None]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    for rounded, exact in zip(gradients["bf16"], gradients["fp32"], strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_a_step_that_is_given_up_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model = GPT2(TINY, 100)
    tokens, targets = torch.randint(0, 100, (2, 2, 32))
    batch = [MicroBatch(tokens, targets)] * 3
    gradient = Gradient(model, VocabularySampler(torch.arange(100), 40), "fp32", phase=1, seed=1)

    def gradients() -> list[torch.Tensor]:
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    assert gradient.compute(batch, 0, is_sampled=True) is not None
    undisturbed = gradients()
    assert any(bool((g != 0).any()) for g in undisturbed)
    gradient.forget()
    answers = iter([True, True, False])
    assert gradient.compute(batch, 0, is_sampled=True, keep_going=lambda: next(answers)) is None
    assert all(bool((g == 0).all()) for g in gradients())
    gradient.warm_up(batch, 0, is_sampled=False)
    assert all(bool((g == 0).all()) for g in gradients())
    assert gradient.compute(batch, 0, is_sampled=True) is not None
    assert all(one.equal(other) for one, other in zip(gradients(), undisturbed, strict=True))


class Products(TorchDispatchMode):
    """Records the types and sizes of the factors of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_linear_pointwise"):
            factors = [tensor for tensor in args if isinstance(tensor, torch.Tensor)]
            self.types |= {factor.dtype for factor in factors}
            self.shapes |= {factor.shape for factor in factors}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_makes_no_new_logits_for_a_step_or_a_chunk(dtype: torch.dtype) -> None:
    """Blocks of 51 MB, allocated and freed each time, would leave gigabytes of holes in the kept memory."""
    hidden, weight = torch.randn(2 * CHUNK, 8), torch.nn.Parameter(torch.randn(50_257, 8))
    targets = torch.randint(0, 50_257, (len(hidden),))
    head = Head(weight, dtype)
    with torch.profiler.profile(profile_memory=True) as profile:
        head.begin()
        head.loss_and_gradient(hidden, targets, 1.0)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < CHUNK * len(weight) * dtype.itemsize / 3

    with torch.profiler.profile(profile_memory=True) as profile:
        head_loss(hidden, weight, targets)
    assert sum(event.self_cpu_memory_usage >= 128 * len(weight) * 4 for event in profile.events()) == 1


def test_the_head_multiplies_matrices_of_few_sizes_whatever_the_number_of_positions() -> None:
    """Each new size is compiled."""
    weight = torch.nn.Parameter(torch.randn(500, 8))
    head = Head(weight)
    head.begin()
    with Products() as products:
        for positions in range(1, 101):
            hidden, targets = torch.randn(positions, 8), torch.randint(0, 500, (positions,))
            head.loss_and_gradient(hidden, targets, 1.0)
            head_loss(hidden, weight, targets)
    assert {size for shape in products.shapes for size in shape} == {8, 500, 32, 64, 96, 128}


@pytest.mark.parametrize("num_tokens", [None, 15])
def test_gradients_of_two_micro_batches_add_up(num_tokens: int | None) -> None:
    """With the whole vocabulary and with a part of it."""
    weight = torch.nn.Parameter(torch.randn(50, 8))
    hidden, targets = torch.randn(6, 8), torch.randint(0, 50, (6,))
    sample = VocabularySampler(torch.arange(50), num_tokens).draw(targets, 1) if num_tokens else None
    whole = _head_gradient(weight, hidden, targets, sample, slice(0, 6))
    torch.testing.assert_close(_head_gradient(weight, hidden, targets, sample, slice(0, 2), slice(2, 6)), whole)


def test_a_sample_that_is_the_whole_vocabulary_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.randn(50, 8))
    hidden, targets = torch.randn(6, 8), torch.randint(0, 50, (6,))
    sample = VocabularySampler(torch.arange(50), 50).draw(targets, 1)
    exact = _head_gradient(weight, hidden, targets, None, slice(0, 6))
    torch.testing.assert_close(_head_gradient(weight, hidden, targets, sample, slice(0, 6)), exact)


def _head_gradient(
    weight: torch.nn.Parameter,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    sample: VocabularySample | None,
    *pieces: slice,
) -> torch.Tensor:
    weight.grad = None
    head = Head(weight)
    head.begin(sample)
    for piece in pieces:
        head.loss_and_gradient(hidden[piece], targets[piece], 1.0)
    head.finish()
    assert weight.grad is not None
    return weight.grad.clone()


def test_a_sample_holds_the_targets_and_tokens_weighed_by_how_seldom_they_are_drawn() -> None:
    counts = torch.tensor([0] * 100 + [10] * 800 + [100_000] * 100)
    targets = torch.tensor([3, 3, 500])
    sampler = VocabularySampler(counts, 200)
    samples = [sampler.draw(targets, seed) for seed in range(400)]
    share = torch.stack([torch.isin(torch.arange(1_000), sample.tokens) for sample in samples]).double().mean(0)
    assert share[[3, 500]].eq(1).all()
    assert share[900:].eq(1).all(), "what is very frequent is always there"
    others = share[100:500].mean().item()
    assert share[4:100].mean().item() == pytest.approx(others / 11**0.75, rel=0.2), (
        "in proportion to (count + 1) ** 0.75"
    )
    assert statistics.mean(len(sample.tokens.unique()) for sample in samples) == pytest.approx(202, abs=2)
    for sample in samples[:3]:
        num_tokens = len(sample.tokens.unique())
        padding = slice(num_tokens, None)
        assert len(sample.tokens) == 256
        assert sample.tokens[padding].eq(sample.tokens[num_tokens - 1]).all()
        assert sample.corrections[padding].eq(-torch.inf).all()
        tokens, corrections = sample.tokens[:num_tokens], sample.corrections[:num_tokens]
        assert tokens.equal(tokens.sort().values)
        is_certain = torch.isin(tokens, torch.tensor([3, 500, *range(900, 1_000)]))
        assert corrections[is_certain].eq(0).all()
        is_one_of_the_800 = ~is_certain & (tokens >= 100)
        expected = torch.full((int(is_one_of_the_800.sum()),), -math.log(others))
        torch.testing.assert_close(corrections[is_one_of_the_800], expected, atol=0.02, rtol=0)
    assert sampler.draw(targets, 7).tokens.equal(samples[7].tokens)
    assert not samples[8].tokens.equal(samples[7].tokens)


def test_the_sampled_loss_is_close_to_the_exact_one_on_average() -> None:
    """Over many draws the estimated normaliser comes close to the exact one. Without the correction it would not."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(2_000, 16) * 0.3)
    hidden, targets = torch.randn(64, 16), torch.randint(0, 2_000, (64,))
    exact = head_loss(hidden, weight, targets) / 64
    sampler = VocabularySampler(torch.arange(2_000), 400)
    head, losses = Head(weight), []
    for seed in range(40):
        head.begin(sampler.draw(targets, seed))
        losses.append(head.loss_and_gradient(hidden, targets, 1.0)[0] / 64)
    assert sum(losses) / 40 == pytest.approx(exact, abs=0.02)


def test_the_gradient_of_the_embedding_is_autograds() -> None:
    model = GPT2(TINY, 500)
    tokens, direction = torch.tensor([[1, 2, 2], [499, 1, 0]]), torch.randn(2, 3, 64)
    weight = model.transformer.wte.weight
    (expected,) = torch.autograd.grad(model.transformer.wte(tokens), weight, direction)
    weight.grad = torch.zeros_like(weight)
    rows = embedded(model, tokens)
    torch.autograd.backward(rows * 1.0, direction)
    add_embedding_gradient(model, tokens, rows)
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_matrices_decay_and_vectors_do_not(kind: Literal["muon", "adamw"]) -> None:
    model = GPT2(TINY, 100)
    optimizer = PhaseOptimizer(model, TrainingConfig(optimizer=kind, weight_decay=0.1, muon_weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.data.fill_(1.0)
    optimizer.step(1.0)
    for parameter in model.parameters():
        assert bool((parameter < 1).all() if parameter.ndim >= 2 else (parameter == 1).all())


def test_adamw_is_torchs_in_every_bit_also_after_a_restart() -> None:
    config = TrainingConfig(optimizer="adamw", weight_decay=0.1, learning_rate=1e-2)
    torch.manual_seed(0)
    model = GPT2(TINY, 100)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in theirs if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in theirs if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.5e-2,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    optimizer: PhaseOptimizer | None = None
    for _ in range(3):
        fresh = PhaseOptimizer(model, config)
        if optimizer is not None:
            fresh.load_state_dict(optimizer.state_dict())
        optimizer = fresh
        for ours, other in zip(model.parameters(), theirs, strict=True):
            ours.grad = torch.randn_like(ours)
            other.grad = ours.grad.clone()
        optimizer.step(0.5)
        reference.step()
        assert all(ours.equal(other) for ours, other in zip(model.parameters(), theirs, strict=True))


def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_directions() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 40, 160)
    result = torch.stack([orthogonalised(matrix) for matrix in matrices])
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.43
    assert singular.max() < 1.57
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert ((left @ right) * result).sum((1, 2)).div(40).min() > 0.8


@pytest.mark.parametrize(
    ("columns", "dtype", "smallest", "tolerance"),
    [(64, torch.float32, -4, 1e-4), (256, torch.float32, -4, 1e-3)]
    + [(columns, torch.bfloat16, -1, 0.2) for columns in (64, 256)],
)
def test_orthogonalisation_is_one_polynomial_of_the_singular_values(
    columns: int, dtype: torch.dtype, smallest: int, tolerance: float
) -> None:
    """Against exact arithmetic, for singular values from 1 to 10^smallest. bf16 has only about two digits."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(2, 64, columns).double(), full_matrices=False)
    singular = torch.logspace(0, smallest, 64).double()
    matrices = (left * singular) @ right
    expected = singular / (1.01 * singular.norm())
    for a, b, c in POLAR_EXPRESS:
        expected = a * expected + b * expected**3 + c * expected**5
    result = torch.stack([orthogonalised(matrix, dtype) for matrix in matrices.float()])
    assert result.dtype == torch.float32
    error = (result.double() - (left * expected) @ right).norm() / expected.norm() / 2**0.5
    assert error < tolerance


def test_muon_treats_queries_keys_values_and_transposed_weights_separately() -> None:
    """Against one plain matrix at a time, as [outputs, inputs]."""
    torch.manual_seed(0)
    fused, tall, wide = (torch.nn.Parameter(torch.randn(16, n)) for n in (48, 16, 64))
    narrow = torch.nn.Parameter(torch.randn(64, 16))
    before = {parameter: parameter.detach().clone() for parameter in (fused, tall, wide, narrow)}
    optimizer = Muon(list(before), lr=0.1, momentum=0.9)
    for parameter in before:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1.0)
    for parameter, old in before.items():
        assert parameter.grad is not None
        first = parameter.grad * 0.1
        update = parameter.grad.lerp(first, 0.9)
        num_parts = 3 if parameter is fused else 1
        for part, new, start in zip(*(t.chunk(num_parts, 1) for t in (update, parameter, old)), strict=True):
            weight = part.T  # [outputs, inputs]
            rows, columns = weight.shape
            direction = orthogonalised(weight)
            scale = max(1.0, rows / columns) ** 0.5
            torch.testing.assert_close(new.T, start.T - 0.1 * scale * direction, rtol=1e-4, atol=1e-4)


def test_learning_rate_rises_then_falls_to_its_floor() -> None:
    config = TrainingConfig(
        learning_rate=1e-3, warmup_fraction=0.1, schedule="cosine", final_learning_rate_fraction=0.1
    )
    rates = [1e-3 * learning_rate_fraction(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (9, 10)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1e-4, rel=0.05)
    assert all(math.isfinite(learning_rate_fraction(step, 1, config)) for step in (0, 1))


def test_by_default_it_falls_in_a_straight_line_to_nothing() -> None:
    fractions = [learning_rate_fraction(step, 100, TrainingConfig(warmup_fraction=0.1)) for step in range(100)]
    assert [fractions[9], fractions[10], fractions[55]] == pytest.approx([1.0, 1.0, 0.5])
    assert fractions[99] == pytest.approx(1 / 90)


def test_a_trapezoid_stays_at_the_peak_and_falls_at_the_end() -> None:
    config = TrainingConfig(
        warmup_fraction=0.1, schedule="trapezoid", decay_fraction=0.4, final_learning_rate_fraction=0.0
    )
    fractions = [learning_rate_fraction(step, 100, config) for step in range(100)]
    assert fractions[9:61] == [1.0] * 52
    assert fractions[80] == pytest.approx(0.5)
    assert fractions[99] == pytest.approx(1 / 40)


def test_auto_takes_bf16_where_the_cpu_has_it_and_says_on_what(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(numerics, "has_hardware_bf16", lambda has_it=has_it: has_it)
        assert numerics.resolve_precision("auto") == precision
        assert numerics.resolve_precision("bf16") == "bf16"
        assert numerics.resolve_precision("fp32") == "fp32"
        described = numerics.describe(2, "bf16")["instruction_set"]
        assert described.endswith(" with bf16" if has_it else " without bf16")
        assert "bf16" not in numerics.describe(2, "fp32")["instruction_set"]
