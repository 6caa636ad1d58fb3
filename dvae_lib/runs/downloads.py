"""Files of others: fetched, and taken only if they are what they should be."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request

from tqdm import tqdm

ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt, twice as many before each further one
TIMEOUT = 30.0  # seconds without an answer
PIECE = 1 << 16  # bytes


def download(address: str, progress: bool = True) -> bytes:
    """Return what is at `address`; where that fails for want of a connection or of a server, try again.

    Raises:
        OSError: it is not there, or none of the attempts got all of it.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            return _read(address, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (403, 408, 429):  # it will not come by asking again
                raise
            last: Exception = error
        except (OSError, http.client.HTTPException) as error:
            last = error
    raise OSError(f"{address}: {ATTEMPTS} attempts failed, the last with: {last}") from last


def sha256(content: bytes) -> str:
    """Return the checksum of `content` as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


def _read(address: str, progress: bool) -> bytes:
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        size = int(answer.headers.get("Content-Length", 0))
        name = address.rsplit("/", 1)[-1]
        content = bytearray()
        bar = tqdm(total=size or None, unit="B", unit_scale=True, desc=name, disable=None if progress else True)
        with bar:
            while piece := answer.read(PIECE):
                content += piece
                bar.update(len(piece))
    if size and len(content) != size:
        raise OSError(f"{len(content)} of {size} bytes came")
    return bytes(content)
