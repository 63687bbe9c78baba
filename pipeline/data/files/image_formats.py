"""Lists the image formats that every loader reads, because Pillow and DALI both decode them."""

# GIF, AVIF and JPEG 2000 are missing: DALI decodes them not at all, or not in every colour mode.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # names in Pillow; PPM is all of PNM
FORMAT_NAMES = "JPEG, PNG, WebP, BMP, TIFF or PNM"
NO_IMAGE = f"not a {FORMAT_NAMES} image"


class NotAnImage(OSError):
    """The file is not an image of a format that is read, or its header is damaged."""
