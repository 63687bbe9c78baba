"""Checks cross-entropy with smoothed labels against its formula."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

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


@pytest.mark.parametrize("mixed", [False, True], ids=["hard", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_binary_cross_entropy_is_that_of_timm(dtype: torch.dtype, smoothing: float, mixed: bool):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(64, 10, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(10, (64,), generator=generator)
    if mixed:  # timm mixes an image with the one in the opposite place
        fraction = 0.7
        targets = mixup_target(labels, 10, fraction, smoothing)
        expected = BinaryCrossEntropy()(logits.float(), targets)
        both = torch.stack([labels, labels.flip(0)], 1)
        loss = classification_loss(
            logits, both, smoothing, torch.tensor([fraction, 1 - fraction]).float(), "bce"
        )
    else:
        expected = BinaryCrossEntropy(smoothing=smoothing)(logits.float(), labels)
        loss = classification_loss(logits, labels, smoothing, name="bce")
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    ours, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_one_label_with_the_fraction_1_is_a_hard_target():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, fractions = (
        torch.tensor([[0, 1], [1, 0], [2, 3], [3, 1], [0, 0], [2, 1]]),
        torch.tensor([1.0, 0.0]),
    )
    (soft,) = torch.autograd.grad(classification_loss(logits, labels, 0.1, fractions), logits)
    (hard,) = torch.autograd.grad(classification_loss(logits, labels[:, 0], 0.1), logits)
    torch.testing.assert_close(soft, hard)
