"""Tests that every function of the library names a wrong argument, before any work is done."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import api
from pipeline.config import CifarData, LossConfig
from pipeline.inference.trained_model import _check_device
from pipeline.training.own_parts import try_network
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("process_state_of_module")


def network(num_classes: int = 4, in_channels: int = 3) -> nn.Sequential:
    features = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))


class Wrapped(nn.Module):
    """A network that returns something else than logits."""

    def __init__(self, returned: Callable[[Tensor], Any]):
        super().__init__()
        self.network, self.returned = network(), returned

    def forward(self, images: Tensor) -> Any:
        return self.returned(self.network(images))


class Stream:
    """A loader of a caller's own, which delivers one batch again and again."""

    steps_per_epoch, num_samples = 5, 8

    def __init__(self, batch: Any, count: int = 100):
        self.batch, self.count = batch, count

    def batches_from(self, step: int) -> Iterator[Any]:
        return iter([self.batch] * self.count)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch])


def batch(**changes: Any) -> Any:
    parts = {"images": torch.zeros(8, 3, 8, 8), "labels": torch.zeros(8, dtype=torch.int64)}
    return api.Batch(
        **{**parts, "valid": torch.ones(8, dtype=torch.bool), "indices": torch.arange(8), **changes}
    )


@pytest.fixture(scope="module")
def config() -> api.Config:
    return tiny_config("duration=2st", "log.eval_every=1st")


@pytest.fixture(scope="module")
def splits(config: api.Config) -> api.Splits:
    return api.load_splits(config)


@pytest.fixture(scope="module")
def trained(config: api.Config, splits: api.Splits) -> api.Trained:
    return api.Trained.of(config, network(), splits)


# --- fit ----------------------------------------------------------------------------------------------------


def frozen() -> nn.Module:
    return network().requires_grad_(False)


def with_nan() -> nn.Module:
    model = network()
    nn.init.constant_(model.get_parameter("5.bias"), torch.nan)
    return model


NETWORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "give a Module, not None"),
    "a name": (lambda: "resnet18", "give a Module, not 'resnet18'"),
    "a class": (lambda: nn.Linear, "give a Module, not "),
    "no parameters": (nn.Flatten, "has no parameters"),
    "lazy": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
        "1.weight has no shape yet; call the network",
    ),
    "frozen": (frozen, r"all parameters are frozen; set requires_grad_\(True\)"),
    "half": (lambda: network().half(), r"0.weight is float16; convert with model.float\(\)"),
    "not finite": (with_nan, "5.bias holds NaN or infinity"),
    "two classes": (lambda: network(2), "logits for 2 classes, and the data has 4; give it a head for 4"),
    "one channel": (lambda: network(4, 1), "fails on images of 3 x 8 x 8, float32 .*give a network for such"),
    "a tuple": (
        lambda: Wrapped(lambda logits: (logits, 1)),
        "returns a tuple for 2 images; it must return logits",
    ),
    "a map": (lambda: nn.Conv2d(3, 4, 3), r"returns torch.float32 \(2, 4, 6, 6\) for 2 images"),
    "integers": (
        lambda: Wrapped(lambda logits: logits.argmax(1)),
        r"returns torch.int64 \(2,\) for 2 images",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_fit_names_what_is_wrong_with_a_network(name: str, config: api.Config, splits: api.Splits):
    build, message = NETWORKS[name]
    with pytest.raises(api.UserError, match=f"^model: .*{message}"):
        api.fit(config, build(), api.build_loaders(config, splits), quiet=True)


BATCHES: dict[str, tuple[Any, str]] = {
    "a pair": ((torch.zeros(8, 3, 8, 8), torch.zeros(8)), "a batch is tuple; give a Batch"),
    "images as bytes": (batch(images=torch.zeros(8, 3, 8, 8, dtype=torch.uint8)), "images is uint8"),
    "one image": (
        batch(images=torch.zeros(3, 8, 8)),
        r"images is float32 \(3, 8, 8\) on cpu; give \(B, C, H, W\)",
    ),
    "arrays": (batch(images=np.zeros((8, 3, 8, 8))), "images of type ndarray; give a Batch"),
    "elsewhere": (batch(images=torch.zeros(8, 3, 8, 8, device="meta")), "on meta; give .* on cpu"),
    "int32 labels": (
        batch(labels=torch.zeros(8, dtype=torch.int32)),
        r"labels is int32 \(8,\) .*give \(B,\) int64",
    ),
    "one-hot labels": (batch(labels=torch.zeros(8, 4)), r"labels is float32 \(8, 4\)"),
    "too few labels": (batch(labels=torch.zeros(7, dtype=torch.int64)), r"labels is int64 \(7,\)"),
    "label 4": (batch(labels=torch.full((8,), 4)), r"label 4 is not in 0\.\.3"),
    "label -1": (batch(labels=torch.full((8,), -1)), r"label -1 is not in 0\.\.3"),
    "valid as numbers": (batch(valid=torch.ones(8)), r"valid is float32 .*give \(B,\) bool"),
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", BATCHES)
def test_fit_names_what_is_wrong_with_a_batch(name: str, part: str, config: api.Config):
    bad, message = BATCHES[name]
    loaders: dict[str, Any] = {
        "train": Stream(batch()),
        "test": Stream(batch()),
        "holdout": None,
        part: Stream(bad),
    }
    with pytest.raises(api.UserError, match=f"^loaders.{part}: .*{message}"):
        api.fit(config, network(), api.Loaders(**loaders), quiet=True)


def test_fit_names_what_a_loader_lacks(config: api.Config):
    good: Any = Stream(batch())
    bad: list[Any] = [[1], iter([]), None]
    for loader in bad:
        with pytest.raises(
            api.UserError, match=r"^loaders.train: .* has no steps_per_epoch, num_samples, batches"
        ):
            api.fit(config, network(), api.Loaders(loader, good, None), quiet=True)


def test_fit_names_a_loader_that_breaks_its_word(config: api.Config):
    short: Any = Stream(batch(), 1)
    good: Any = Stream(batch())
    with pytest.raises(api.TrainingError, match=r"loaders.train: the stream of batches has ended"):
        api.fit(config, network(), api.Loaders(short, good, None), quiet=True)
    good.num_samples = 9
    with pytest.raises(api.TrainingError, match="num_samples=9, but its batches hold 8 samples"):
        api.fit(config, network(), api.Loaders(good, good, None), quiet=True)


def test_arrays_of_a_program_train_with_balanced_weights(config: api.Config):
    generator = np.random.default_rng(0)
    labels = np.array([0] * 20 + [1] * 3 + [2] * 17)
    train = api.ImageSet(generator.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), labels)
    splits = api.Splits.from_arrays(train, train.take(np.arange(0, 40, 7)), class_names=("a", "b", "c"))
    balanced = config.model_copy(update={"loss": LossConfig(class_weights="balanced")})
    loaders = api.build_loaders(balanced, splits)
    assert loaders.class_sizes == (20, 3, 17)
    model = api.build_model(balanced, splits)
    before = [value.detach().clone() for value in model.parameters()]
    assert api.fit(balanced, model, loaders, quiet=True).seen == 6
    assert any(not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))
    own = api.Loaders(loaders.train, loaders.test, None)
    with pytest.raises(api.UserError, match=r"loss.class_weights: balanced needs .*class_sizes"):
        api.fit(balanced, model, own, quiet=True)


def arrays(*shape: int) -> api.Splits:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, *shape, 3), dtype=np.uint8)
    part = api.ImageSet(images, np.arange(8) % 4)
    return api.Splits.from_arrays(part, part)


OTHER_SIZES: dict[str, tuple[api.Splits, dict[str, Any], str]] = {
    "larger": (arrays(16, 16), {}, "16 x 16 pixels, and the config is for 8 x 8; .* data.image_size=16$"),
    "oblong": (arrays(8, 16), {}, "8 x 16 pixels, .*; make them square"),
    "cifar": (
        arrays(28, 28),
        {"data": CifarData()},
        "28 x 28 pixels, and the config is for 32 x 32; .* data.image_size=28 and data.dataset=synthetic",
    ),
}


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_arrays_of_another_size_than_the_configs_are_refused(config: api.Config, name: str):
    """The network, the mixed images and the images of a prediction would have the size of the config."""
    splits, changes, message = OTHER_SIZES[name]
    other = config.model_copy(update=changes)
    for build in (
        api.build_loaders,
        api.build_model,
        lambda *given: api.Trained.of(given[0], network(), splits),
    ):
        with pytest.raises(api.UserError, match=f"^splits: images of {message}"):
            build(other, splits)


def test_predictions_use_the_statistics_of_the_arrays(config: api.Config):
    data = config.data.model_copy(update={"mean": (0.1,) * 3, "std": (0.9,) * 3})
    splits = arrays(8, 8)
    trained = api.Trained.of(config.model_copy(update={"data": data}), network(), splits)
    assert (trained.inputs.mean, trained.inputs.std) == (splits.mean, splits.std)


class _Draws(nn.Module):
    """A network with dropout in evaluation too, and a count of its calls in training."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = network(), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        return nn.functional.dropout(self.network(images), 0.5, training=True)


def test_the_check_leaves_no_trace():
    """The network is tried on the first batch, with no effect on random numbers, modes or statistics."""
    model = _Draws()
    model.network[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, state = torch.randn(5, 3, 8, 8), torch.get_rng_state()
    assert try_network(model, images).shape == (2, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [model.training, model.network.training, model.network[1].training] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.calls == 0


# --- a trained network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(2), "logits for 2 classes, and the data has 4"),
        (network(5), "logits for 5 classes, and the data has 4"),
        (network(4, 1), "fails on images of 3 x 8 x 8"),
        (nn.Flatten(), "has no parameters"),
        (network().to("meta"), "is on the meta device and has no weights"),
        (Wrapped(lambda logits: {"logits": logits}), "returns a dict"),
        ("resnet18", "give a Module, not 'resnet18'"),
    ],
    ids=str,
)
def test_a_network_that_does_not_fit_the_data_is_not_taken(
    model: Any, message: str, config: api.Config, splits: api.Splits
):
    with pytest.raises(api.UserError, match=f"^model: .*{message}"):
        api.Trained.of(config, model, splits)


def test_a_frozen_and_a_half_network_are_taken(config: api.Config, splits: api.Splits):
    for model in (frozen(), network().half()):
        assert api.explain_mistakes(api.Trained.of(config, model, splits), 2).layer == "2"


def test_a_network_without_convolutions_has_no_maps(config: api.Config, splits: api.Splits):
    trained = api.Trained.of(config, perceptron(), splits)
    assert trained.test_logits().shape == (8, 4)
    with pytest.raises(api.UserError, match=r"Grad-CAM needs a layer .* Sequential has none .*name a layer"):
        api.explain_mistakes(trained)


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "images",
    [IMAGES / 255, IMAGES[0], IMAGES.transpose(0, 3, 1, 2), IMAGES[..., :1], "a.png", None, [0]],
    ids=str,
)
def test_other_arrays_than_images_are_named(images: Any, trained: api.Trained):
    for work in (trained.logits, lambda images: api.explain_pixels(trained, images)):
        with pytest.raises(api.UserError, match=r"^images: .*give \(N, H, W, 3\) uint8"):
            work(images)


def test_no_images_and_too_small_ones(trained: api.Trained):
    assert trained.logits(IMAGES[:0]).shape == (0, 4)
    with pytest.raises(api.UserError, match=r"^images: there are none"):
        api.explain_pixels(trained, IMAGES[:0])
    for work in (trained.logits, lambda images: api.explain_pixels(trained, images)):
        with pytest.raises(api.UserError, match=r"^model: the network fails on images of 3 x 1 x 1"):
            work(IMAGES[:, :1, :1])


@pytest.mark.parametrize(
    "labels", [[0], [0, 1, 2], [-1, 0], [0, 4], [0.5, 1], ["a", "b"], np.eye(4)[:2], 3], ids=str
)
def test_other_labels_than_the_images_classes_are_named(labels: Any, trained: api.Trained):
    for target in ("predicted", "true"):
        with pytest.raises(api.UserError, match=r"^labels: "):
            api.explain_pixels(trained, IMAGES, labels, target=target)


@pytest.mark.parametrize("labels", [[0, 1], np.array([0, 1], np.int32), torch.tensor([0, 1])], ids=str)
def test_labels_of_other_integers_are_taken(labels: Any, trained: api.Trained):
    found = api.explain_pixels(trained, IMAGES, labels, target="true").found
    assert found.classes.tolist() == [0, 1]


EXPLAINED: dict[str, tuple[dict[str, Any], str]] = {
    "too few sources": ({"sources": ["a"]}, "sources: 1 names for 2 images"),
    "one source": ({"sources": "ab"}, "sources: give a list, not 'ab'"),
    "a layer": ({"layer": nn.ReLU()}, r"layer: give a text or None, not ReLU\(\)"),
    "no method": ({"method": None}, "method: give a text, not None"),
    "a class between": ({"target": 1.5}, "target: give a text or a whole number, not 1.5"),
    "a truth value": ({"target": True}, "target: give a text or a whole number, not True"),
    "no class": ({"target": 4}, "class: 4 is none of the indices 0 to 3"),
    "options": ({"options": {}}, "options: give an ExplainOptions, not {}"),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_options_of_an_explanation_are_named(name: str, trained: api.Trained):
    keywords, message = EXPLAINED[name]
    with pytest.raises(api.UserError, match=f"^{message}"):
        api.explain_pixels(trained, IMAGES, **keywords)


def test_numbers_of_numpy_are_numbers(trained: api.Trained):
    assert library.explain_pixels(trained, IMAGES, target=np.int64(1)).target == 1
    assert len(library.explain_samples(trained, np.array([3, 1]))) == 2


library: Any = api  # so that the type checker allows wrong arguments
CALLS: dict[str, tuple[Callable[[api.Trained], Any], str]] = {
    "no mistakes": (lambda trained: library.explain_mistakes(trained, 0), "count: 0 images; give 1 or more"),
    "half a mistake": (
        lambda trained: library.explain_mistakes(trained, 1.5),
        "count: give a whole number, not 1.5",
    ),
    "half an index": (
        lambda trained: library.explain_samples(trained, [0.5]),
        r"indices\[0\]: give a whole number",
    ),
    "a mask": (
        lambda trained: library.explain_samples(trained, np.ones(8, bool)),
        r"indices\[0\]: give a whole",
    ),
    "one index": (lambda trained: library.explain_samples(trained, 3), "indices: give a list, not 3"),
    "an index of none": (
        lambda trained: library.explain_samples(trained, [8]),
        "indices: 8: the test set has",
    ),
    "no indices": (lambda trained: library.explain_samples(trained, []), "images: there are none"),
    "one file": (lambda trained: library.explain_files(trained, "a.png"), "files: give a list, not 'a.png'"),
    "no file": (lambda trained: library.explain_files(trained, [None]), r"files\[0\]: give a text or a path"),
    "one file to predict": (
        lambda trained: library.predict_files(trained, "a.png"),
        "files: give a list, not 'a.png'",
    ),
    "no classes": (
        lambda trained: library.predict_files(trained, [], 0),
        "top: 0 classes for each image; give 1",
    ),
    "no network": (lambda _: library.predict_files("run", []), "trained: give a Trained, not 'run'"),
    "a format": (
        lambda _: library.export_run("runs/none", "pt"),
        "format: 'pt' is none of safetensors, hub, torch-export",
    ),
    "an input": (
        lambda _: library.export_run("runs/none", "onnx", input="rgb"),
        "input: 'rgb' is none of unit, norm",
    ),
    "a run": (lambda _: library.load_trained(None), "path: give a text or a path, not None"),
    "a step": (lambda _: library.evaluate_run("runs/none", 3), "which: give a text, not 3"),
    "a recipe": (lambda _: library.train("tests/tiny.yaml"), "config: give a Config, not 'tests/tiny.yaml'"),
    "one override": (
        lambda _: library.load_config(None, "duration=2ep"),
        "overrides: give a list, not 'duration=2ep'",
    ),
    "no data": (lambda _: library.build_model(tiny_config(), None), "splits: give a Splits, not None"),
    "a dict": (lambda _: library.load_splits({}), "config: give a Config, not {}"),
    "an array": (lambda _: library.draw_contact_sheet("a.png", IMAGES), "explained: give an Explained, not"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_function_names_a_wrong_argument(name: str, trained: api.Trained):
    call, message = CALLS[name]
    with pytest.raises(api.UserError, match=f"^{message}"):
        call(trained)


@pytest.mark.parametrize("path", ["", "a\0b", "/none/sheet.png", "/"])
def test_a_picture_that_cannot_be_written_is_named(path: str, trained: api.Trained):
    with pytest.raises(api.UserError, match=r"cannot be written .*; choose another place"):
        api.draw_contact_sheet(path, api.explain_pixels(trained, IMAGES))


def test_a_device_that_is_not_there_is_named():
    assert _check_device("cpu") == torch.device("cpu")
    for device in ("xpu9", "meta", torch.device("cuda", 99)):
        with pytest.raises(api.UserError, match=r"^device: .*cannot be used .*give cpu"):
            _check_device(device)
