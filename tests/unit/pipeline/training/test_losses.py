"""Checks cross-entropy with smoothed labels against its formula."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from pipeline.config import LossConfig, load_config
from pipeline.errors import UserError
from pipeline.training.losses import classification_loss, compute_class_weights
from tests.tiny import tiny_config, tiny_trainer, train_steps

CPU = torch.device("cpu")


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


# --- class weights ---

WEIGHTS = torch.tensor([0.5, 0.0, 2.0, 3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True], ids=["hard", "mixed"])
def test_each_class_s_term_has_its_weight(smoothing: float, mixed: bool):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(16, 4, generator=generator), torch.randint(4, (16, 2), generator=generator)
    fractions = torch.tensor([0.75, 0.25]) if mixed else torch.tensor([1.0, 0.0])
    target = torch.full((16, 4), smoothing / 4, dtype=torch.float64)
    for number, fraction in enumerate(fractions):
        target[torch.arange(16), labels[:, number]] += (1 - smoothing) * fraction
    expected = -(WEIGHTS * target * logits.double().log_softmax(1)).sum(1).mean()
    given = (labels, smoothing, fractions) if mixed else (labels[:, 0], smoothing, None)
    loss = classification_loss(logits, *given, class_weights=WEIGHTS)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    of_class = target * logits.double().sigmoid().log() + (1 - target) * (-logits.double()).sigmoid().log()
    binary = classification_loss(logits, *given, name="bce", class_weights=WEIGHTS)
    torch.testing.assert_close(binary.double(), -(WEIGHTS * of_class).mean(), rtol=1e-6, atol=0)


def test_weights_of_1_change_nothing():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    for smoothing in (0.0, 0.1):
        plain = classification_loss(logits, labels, smoothing)
        torch.testing.assert_close(
            classification_loss(logits, labels, smoothing, class_weights=torch.ones(4)), plain
        )


def test_balanced_weights_are_inverse_to_the_sizes_and_1_on_average():
    sizes = (40, 10, 0, 50)
    weights = compute_class_weights(LossConfig(class_weights="balanced"), 4, sizes, CPU)
    assert weights is not None and weights[2] == 0
    torch.testing.assert_close(weights[[0, 1, 3]], 100 / (3 * torch.tensor([40.0, 10.0, 50.0])))
    torch.testing.assert_close((weights * torch.tensor(sizes)).sum() / 100, torch.tensor(1.0))
    assert compute_class_weights(LossConfig(), 4, sizes, CPU) is None


def test_weights_that_do_not_fit():
    with pytest.raises(UserError, match=r"^loss.class_weights: 2 weights for 4 classes; give one for each"):
        compute_class_weights(LossConfig(class_weights=(1.0, 2.0)), 4, None, CPU)
    with pytest.raises(UserError, match=r"^loss.class_weights: 4 weights for 3 classes"):
        classification_loss(torch.zeros(2, 3), torch.tensor([0, 1]), 0.0, class_weights=WEIGHTS)
    with pytest.raises(UserError, match=r"^loss.class_weights: balanced needs .*class_sizes"):
        compute_class_weights(LossConfig(class_weights="balanced"), 4, None, CPU)


@pytest.mark.parametrize("value", ["[1, -1]", "[0, 0]", "[1, x]", "[true, 1]", "3", "even", "[.inf]", "[]"])
def test_what_is_no_list_of_weights(value: str):
    with pytest.raises(UserError, match=r"loss.class_weights: .*(list|none of balanced)"):
        load_config(overrides=[f"loss.class_weights={value}"])


@pytest.mark.usefixtures("process_state")
def test_a_class_of_weight_0_is_not_learned():
    """Images of class 3 alone give no gradient but that of the decay."""
    keys = ("augment.crop_padding=0", "augment.flip=false", "augment.cutout=0", "optimizer.weight_decay=0.0")
    trainer = tiny_trainer(tiny_config("loss.class_weights=[1, 1, 1, 0]", *keys))
    before = {name: value.clone() for name, value in trainer.state.model.named_parameters()}
    batch = next(trainer.loaders.train.batches_from(0))
    batch.labels.fill_(3)
    assert trainer.step(batch).loss == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.state.model.named_parameters())
    assert train_steps(trainer, 2)[-1] > 0
