"""Says what timm downloads from the Hugging Face Hub, and finds early that the hub cannot be reached."""

import logging
import time

from pipeline.process.notice import tell

_log = logging.getLogger(__name__)

_TRIES_S = (10.0, 20.0, 40.0)  # for one small answer, in turn
_PAUSE_S = 2.0


def reach_hub(repository: str, filename: str | None, *, is_main: bool = True) -> None:
    """Say that weights are downloaded, and check that the hub answers.

    timm itself asks for two files, each many times, before it gives up. If the cache has the weights, nothing
    is asked.

    Args:
        repository: of the weights.
        filename: of the weights there; None is timm's default.
        is_main: say it.

    Raises:
        Exception: of any type, if the hub does not answer.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if _is_cached(repository, filename):
        return
    url = hf_hub_url(repository, "config.json")
    tries = [max(seconds, constants.HF_HUB_ETAG_TIMEOUT) for seconds in _TRIES_S]
    if is_main and not constants.HF_HUB_OFFLINE:
        place = url.partition("/resolve/")[0]
        # no seconds: a time-out counts for each address of the host, and a host may have many
        text = "model.weights: downloading %s; without an answer this ends after %d tries"
        tell(_log, text, place, len(tries))
    for number, seconds in enumerate(tries, start=1):
        try:
            get_hf_file_metadata(url, timeout=seconds)
            return
        except HfHubHTTPError:  # it answers; timm says what is wrong
            return
        except Exception:
            if constants.HF_HUB_OFFLINE or number == len(tries):
                raise
            time.sleep(_PAUSE_S)


def _is_cached(repository: str, filename: str | None) -> bool:
    """Return True if the cache of the Hugging Face Hub has one of the files that timm looks for."""
    from huggingface_hub import try_to_load_from_cache

    given = filename or "pytorch_model.bin"
    safe = f"{given.removesuffix('.bin')}.safetensors"
    names = (given, safe, "model.safetensors", "open_clip_model.safetensors")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
