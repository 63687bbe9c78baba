"""Defines the section `evaluation`, and the test-time views that it asks for. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.config.base import Section

ViewsKind = Literal["none", "mirror", "mirror_shift"]
# The name of the mirror image of every image: older versions had no other views, and called them so.
FLIP = "flip_tta"
# Every name that `Views.name` gives, except `FLIP`.
VIEWS_NAME = r"(?:mirror_shift|mirror)(?:_[\d.e-]+pct)?"
_LABELS = {FLIP: "with flip", "mirror": "with mirror", "mirror_shift": "with mirror and shift"}


@dataclass(frozen=True)
class Views:
    """Describes the test-time views of an evaluation.

    Attributes:
        kind: `mirror` and `mirror_shift` are defined in `training/views.py`; `none`: the image alone.
        share: fraction of the images, the least sure ones, that get more than one view; in (0, 1].
    """

    kind: ViewsKind = "none"
    share: float = 1.0

    @property
    def in_part(self) -> bool:
        """True if some images keep their one view."""
        return self.kind != "none" and self.share < 1

    @property
    def name(self) -> str:
        """The name of the accuracy in records: `mirror_shift`, or `mirror_shift_25pct` for a quarter of the
        images. The mirror image of every image is `flip_tta`; empty for one view."""
        if self.kind == "none":
            return ""
        if self.in_part:
            return f"{self.kind}_{100 * self.share:g}pct"
        return FLIP if self.kind == "mirror" else self.kind

    def count(self, num_images: int) -> int:
        """Return the number of images that get more than one view: the nearest to `share`, at least one."""
        return 0 if self.kind == "none" else max(1, round(self.share * num_images))


def label_of(name: str) -> str:
    """Return the words for a name of `Views.name`.

    >>> label_of("flip_tta"), label_of("mirror_shift_25pct")
    ('with flip', 'with mirror and shift (least sure 25%)')
    """
    part = re.search(r"_([\d.e-]+)pct$", name)
    if part is None:
        return _LABELS[name]
    return f"{_LABELS[name[: part.start()]]} (least sure {part[1]}%)"


class EvaluationConfig(Section):
    flip_tta: bool = Field(
        default=False,
        description="Evaluate the mean of the logits of each image and its mirror image too; the older form "
        "of `views: mirror`",
    )
    views: ViewsKind = Field(
        default="none",
        description="Evaluate the mean of the logits of several views of an image too, recorded beside the "
        "figures of one view. `mirror`: the image and its mirror image; `mirror_shift`: these two, and both "
        "shifted by one pixel to the upper left and to the lower right",
    )
    views_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of the images that get these views: those whose highest probability from one "
        "view is lowest. The others keep their one view",
    )

    @property
    def test_views(self) -> Views:
        """The views that `views` and `views_share`, or `flip_tta`, ask for."""
        return Views("mirror") if self.flip_tta else Views(self.views, self.views_share)
