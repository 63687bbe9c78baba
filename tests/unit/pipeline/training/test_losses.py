"""Checks cross-entropy with smoothed labels against its formula."""

import pytest
import torch

from pipeline.training.losses import classification_loss


def by_hand(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Use the target (1 - e) on the label plus e / K on every class (Szegedy et al. 2016, section 7)."""
    classes = logits.shape[1]
    target = torch.full_like(logits, smoothing / classes, dtype=torch.float64)
    target[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(target * logits.double().log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loss_is_the_formula_in_float32(dtype: torch.dtype, smoothing: float):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(64, 10, generator=generator)).to(dtype)
    labels = torch.randint(10, (64,), generator=generator)
    loss = classification_loss(logits, labels, smoothing)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss.double(), by_hand(logits, labels, smoothing), rtol=1e-6, atol=0)


def test_gradient_is_probability_minus_target():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    classification_loss(logits, labels, 0.2).backward()
    target = torch.full((5, 4), 0.05)
    target[torch.arange(5), labels] += 0.8
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - target) / 5)


def test_large_logits_do_not_overflow_in_half_precision():
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert classification_loss(logits, torch.tensor([1]), 0.0).item() == 120000


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_loss_of_mixed_labels_is_the_mean_of_theirs(dtype: torch.dtype, smoothing: float):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(64, 10, generator=generator)).to(dtype)
    labels, fractions = torch.randint(10, (64, 3), generator=generator), torch.tensor([0.5, 0.3, 0.2])
    loss = classification_loss(logits, labels, smoothing, fractions)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    expected = sum(
        fraction * by_hand(logits, labels[:, number], smoothing)
        for number, fraction in enumerate(fractions.double())
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_one_label_with_the_fraction_1_is_a_hard_target():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, fractions = (
        torch.tensor([[0, 1], [1, 0], [2, 3], [3, 1], [0, 0], [2, 1]]),
        torch.tensor([1.0, 0.0]),
    )
    (soft,) = torch.autograd.grad(classification_loss(logits, labels, 0.1, fractions), logits)
    (hard,) = torch.autograd.grad(classification_loss(logits, labels[:, 0], 0.1), logits)
    torch.testing.assert_close(soft, hard)
