"""Makes saliency maps with the grad-cam library, and draws them as a contact sheet.

Maps are made after training, on a fresh float32 eager model built from the checkpoint. A compiled, bf16 or
DDP model crashes, hangs or gives a wrong map.
"""

from pipeline.explain.cam import CLASS_AGNOSTIC, METHODS, Explanations, check_method, explain_images
from pipeline.explain.contact_sheet import Explained, draw_contact_sheet
from pipeline.explain.layers import find_layer
from pipeline.explain.selection import parse_target, select_images

__all__ = [
    "CLASS_AGNOSTIC",
    "METHODS",
    "Explained",
    "Explanations",
    "check_method",
    "draw_contact_sheet",
    "explain_images",
    "find_layer",
    "parse_target",
    "select_images",
]
