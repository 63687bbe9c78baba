"""Tells which image files are bad, and which are damaged inside."""

import logging
from collections.abc import Iterator, Mapping

from pipeline.data.files.cache import BadImages
from pipeline.data.files.listing import Listing, describe_line
from pipeline.data.files.paths import printable
from pipeline.data.files.scan import Scan
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

_MAX_NAMED = 10


def report_bad(listing: Listing, bad: BadImages, stop: bool) -> None:
    """Name the files that cannot be read: with STOP the first ones in an error, otherwise all in a warning.

    Raises:
        UserError: there are bad files, and STOP is True.
    """
    lines = list(_name(listing, bad))
    count = len(lines)
    if not count:
        return
    rule = f"\n{describe_line(listing.root)}" if listing.from_lists else ""
    if stop:
        key = next(listing.key_of(part) for part, reasons in bad.items() if reasons)
        more = f"\n  and {count - _MAX_NAMED} more" if count > _MAX_NAMED else ""
        raise UserError(
            f"{key}: {count} of {len(listing)} images cannot be read; replace or remove them, or set "
            f"data.on_bad_image=skip:{''.join(lines[:_MAX_NAMED])}{more}{rule}"
        )
    _log.warning(
        "data.on_bad_image: %d of %d images cannot be read and are left out:%s%s",
        count,
        len(listing),
        "".join(lines),
        rule,
    )


def report_damage(listing: Listing, scan: Scan) -> None:
    """Warn of JPEG files that are damaged inside: decoders show them, with wrong pixels."""
    lines = list(_name(listing, scan.damaged))
    if not lines:
        return
    _log.warning(
        "data.root: %d of %d JPEG files that were inspected are damaged inside, and some of their pixels are "
        "wrong; replace them (python -m pipeline check-data finds all such files):%s",
        *(len(lines), scan.num_inspected, "".join(lines)),
    )


def _name(listing: Listing, reasons: Mapping[str, Mapping[int, str]]) -> Iterator[str]:
    """Yield a line for each file: its path, the reason, and its place in a list file."""
    for part, of_part in reasons.items():
        for index, reason in of_part.items():
            name = printable(str(listing.file(part, index)))
            yield f"\n  {name}: {reason}{listing.place(part, index)}"
