"""The files that the pages take from the CDN, as npm installed them."""

import base64
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "node_modules"
ADDRESS = re.compile(r"https://cdn\.jsdelivr\.net/npm/((?:@[^/@]+/)?[^/@]+)@([^/]+)/([^?#]+)")


def package_file(url: str) -> Path:
    """Return the file of node_modules that is what the CDN has at `url`; ValueError where there is none."""
    match = ADDRESS.fullmatch(url)
    if match is None:
        raise ValueError(f"{url} is no file of a package at a version on cdn.jsdelivr.net")
    name, version, path = match.groups()
    folder = PACKAGES / name
    if not (folder / "package.json").exists():
        raise ValueError(f"{url} is of a package that is not installed")
    installed = json.loads((folder / "package.json").read_text())["version"]
    if version != installed:
        raise ValueError(f"{url} is of version {version}, installed is {installed}")
    file = (folder / path).resolve()
    if not (file.is_relative_to(folder.resolve()) and file.is_file()):
        raise ValueError(f"{url} is not in its package")
    return file


def integrity(url: str) -> str:
    """Return the hash that a page must name for `url`."""
    return "sha384-" + base64.b64encode(hashlib.sha384(package_file(url).read_bytes()).digest()).decode()
