"""What the pages fetch from outside: at exact versions, with the hashes of what the CDN sends, and nothing else."""

import importlib.metadata
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from cdn import ROOT, integrity, package_file
from refresh import notebooks

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
DIRECT = CONFIG["nb_ipywidgets_js"]  # in script tags
WITH_WIDGETS = [path.stem for path in notebooks() if "widgets" in json.loads(path.read_text())["metadata"]]
ANYWIDGET = re.search(
    r'anywidget: "([^"]+)".*integrity = "([^"]+)"',
    next(options["onload"] for options in CONFIG["nb_ipywidgets_js"].values() if "onload" in options),
)


class Addresses(HTMLParser):
    """Collects what a page makes the browser fetch, with the tag's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        fetched = {"link": "href", "object": "data"}.get(tag, "src")
        if tag == "link" and attributes.get("rel") in ("canonical", "next", "prev", "index", "search"):
            return
        if address := attributes.get(fetched):
            self.found.append((address, attributes))


@pytest.mark.parametrize("url", DIRECT)
def test_a_script_of_the_configuration_has_its_hash(packages, url):
    assert DIRECT[url]["integrity"] == integrity(url)
    assert DIRECT[url]["crossorigin"] == "anonymous"


def test_the_front_end_has_its_hash_and_is_of_the_version_of_pythons_anywidget(packages):
    url, digest = ANYWIDGET.groups()
    assert digest == integrity(f"{url}.js")  # require.js adds the ending
    version = url.split("@")[1].split("/")[0]
    assert f"anywidget=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert importlib.metadata.version("anywidget") == version


def test_the_npm_packages_are_exact_and_the_lock_names_no_registry():
    wanted = json.loads((ROOT / "package.json").read_text())["devDependencies"]
    lock = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("integrity" in entry and "resolved" not in entry for name, entry in lock.items() if name)


def test_the_built_pages_name_no_other_address(html, packages):
    pages = sorted(html.rglob("*.html"))
    assert len(pages) > 10
    seen = set()
    for page in pages:
        parser = Addresses()
        parser.feed(page.read_text())
        for address, attributes in parser.found:
            if re.match(r"(https?:)?//", address):
                assert address in DIRECT, page.name
                assert attributes | DIRECT[address] == attributes, page.name
                seen.add(address)
    assert seen == DIRECT.keys()


@pytest.mark.parametrize("name", WITH_WIDGETS)
def test_the_page_asks_for_the_named_front_end_and_checks_its_hash(open_page, name):
    script = open_page(f"book/{name}").locator("script[data-requiremodule=anywidget]")
    script.wait_for(state="attached")
    attributes = {key: script.get_attribute(key) for key in ("src", "integrity", "crossorigin")}
    url, digest = ANYWIDGET.groups()
    assert attributes == {"src": f"{url}.js", "integrity": digest, "crossorigin": "anonymous"}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://cdn.jsdelivr.net/npm/requirejs@2/require.js", "version 2, installed"),
        ("https://cdn.jsdelivr.net/npm/requirejs@2.3.8/no-such-file.js", "not in its package"),
        ("https://cdn.jsdelivr.net/npm/requirejs@2.3.8/../anywidget/dist/index.js", "not in its package"),
        ("https://cdn.jsdelivr.net/npm/requirejs/require.js", "no file of a package"),
        ("https://unpkg.com/requirejs@2.3.8/require.js", "no file of a package"),
        ("https://cdn.jsdelivr.net/npm/no-such-package@1.0.0/index.js", "not installed"),
    ],
)
def test_only_installed_files_at_their_versions_stand_in_for_the_cdn(packages, url, problem):
    with pytest.raises(ValueError, match=problem):
        package_file(url)
