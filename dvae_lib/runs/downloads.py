"""Files of others: fetched, and taken only if they are what they should be."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from dvae_lib.runs.reports import bars_are_off

ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt, twice as many before each further one
TIMEOUT = 30.0  # seconds without an answer
PIECE = 1 << 16  # bytes


def download(address: str) -> bytes:
    """Return what is at `address`; where that fails for want of a connection or of a server, try again.

    On a terminal a bar shows the progress, unless the environment variable TQDM_DISABLE is set.

    Raises:
        OSError: it is not there, or none of the attempts got all of it.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            return _read(address)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (403, 408, 429):  # it will not come by asking again
                raise OSError(f"{address}: {error}") from error
            last: Exception = error
        except (OSError, http.client.HTTPException) as error:
            last = error
    raise OSError(f"{address}: {ATTEMPTS} attempts failed, the last with: {last!r}") from last


def sha256(content: bytes) -> str:
    """Return the checksum of `content` as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


def _read(address: str) -> bytes:
    """Return what one request brings.

    Raises:
        OSError, http.client.HTTPException: no answer, one that says no, or fewer bytes than it promised.
    """
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        size = answer.length  # in bytes, None if the server does not say
        name = address.rsplit("/", 1)[-1]
        content = bytearray()
        with tqdm(total=size, unit="B", unit_scale=True, desc=name, disable=bars_are_off() or None) as bar:
            while piece := answer.read(PIECE):
                content += piece
                bar.update(len(piece))
    if size is not None and len(content) != size:
        raise OSError(f"{len(content)} of {size} bytes came")
    return bytes(content)
