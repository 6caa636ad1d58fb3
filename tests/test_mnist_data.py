"""The binarised MNIST: fetched from a server of the test's own, verified, kept packed; and refused if it is not it."""

import contextlib
import hashlib
import http.server
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dvae_lib import binarized_mnist, data
from dvae_lib.runs import digits, downloads

ROOT = Path(__file__).resolve().parent.parent
PIXELS = 28 * 28
SIZES = {"train": 5, "valid": 3, "test": 2}
NAMES = {split: f"binarized_mnist_{split}.amat" for split in SIZES}


def made_up_digits(n, seed):
    """A made-up public file: a line an image, of 0s and 1s with a space between, and no space at its end."""
    rows = np.random.default_rng(seed).integers(0, 2, (n, PIXELS))
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()


FILES = {NAMES[split]: made_up_digits(n, seed) for seed, (split, n) in enumerate(SIZES.items())}
SHA256 = {split: hashlib.sha256(FILES[name]).hexdigest() for split, name in NAMES.items()}


def expected(split):
    """The images of a made-up file, as NumPy reads its numbers."""
    return torch.tensor(np.loadtxt(io.BytesIO(FILES[NAMES[split]]))).float().view(-1, 1, 28, 28)


def packed(content=None):
    """The packed file of made-up images, or of other arrays."""
    bits = {split: np.loadtxt(io.BytesIO(FILES[name])).astype(np.uint8) for split, name in NAMES.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **(content or {split: np.packbits(rows, axis=1) for split, rows in bits.items()}))
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves FILES; `answers` says how the next requests are met, "whole" once it is empty."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.answers = dict(FILES), [], []
        self.closing = threading.Event()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        how = self.server.answers.pop(0) if self.server.answers else "whole"
        self.close_connection = True
        if isinstance(how, int):
            self.send_error(how)
            return
        if how == "silent":
            self.server.closing.wait(20)
            return
        content = self.server.files[name]
        self.send_response(200)
        if how == "cut in a chunk":
            self.send_header("Transfer-Encoding", "chunked")
        elif how != "no length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how == "cut in a chunk":
            self.wfile.write(b"%x\r\n" % len(content))
        self.wfile.write(content[:-100] if how.startswith("cut") else content[:0] if how == "empty" else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def made_up(monkeypatch):
    """The made-up digits in the place of the true ones, and no folder of the user's."""
    for module in (data, digits):
        monkeypatch.setattr(module, "MNIST_SHA256", SHA256)
    monkeypatch.setattr(digits, "MNIST_ADDRESS", "http://127.0.0.1:9/nowhere")  # nobody listens at this port
    monkeypatch.delenv("DVAE_DATA", raising=False)
    monkeypatch.setattr(downloads, "WAIT", 0)


@pytest.fixture
def server(made_up, monkeypatch):
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(digits, "MNIST_ADDRESS", f"http://127.0.0.1:{server.server_port}/public/digits")
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def offline(made_up, monkeypatch):
    """Whoever asks the network, or writes, fails the test."""

    def forbidden(*_):
        raise AssertionError("neither the network nor the disk is needed")

    monkeypatch.setattr(digits, "download", forbidden)
    monkeypatch.setattr(digits, "write_bytes", forbidden)


# what is wanted


@pytest.mark.parametrize("first", SIZES)
def test_downloaded_once_and_then_read_from_the_folder(server, tmp_path, first):
    folder = tmp_path / "not there" / "yet"
    for split in (first, *SIZES):
        images = binarized_mnist(split, folder)
        assert (images.dtype, images.device.type) == (torch.float32, "cpu")
        assert torch.equal(images, expected(split))
        assert sorted(server.asked) == sorted(FILES)
        assert os.listdir(folder) == [digits.MNIST_PACKED]


def test_the_packed_file_has_a_bit_a_pixel(server, tmp_path):
    binarized_mnist("test", str(tmp_path))
    with np.load(tmp_path / digits.MNIST_PACKED) as splits:
        there = {split: (splits[split].dtype, splits[split].shape) for split in splits}
    assert there == {split: (np.dtype(np.uint8), (n, 98)) for split, n in SIZES.items()}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("split", SIZES)
def test_a_folder_that_holds_the_packed_file_is_only_read(tmp_path, split):
    (tmp_path / digits.MNIST_PACKED).write_bytes(packed())
    tmp_path.chmod(0o500)
    try:
        assert torch.equal(binarized_mnist(split, tmp_path), expected(split))
    finally:
        tmp_path.chmod(0o700)


def test_public_files_in_the_folder_are_taken_and_only_the_others_downloaded(server, tmp_path):
    (tmp_path / NAMES["valid"]).write_bytes(FILES[NAMES["valid"]])
    assert torch.equal(binarized_mnist("valid", tmp_path), expected("valid"))
    assert server.asked == [NAMES["train"], NAMES["test"]]
    assert sorted(os.listdir(tmp_path)) == sorted([NAMES["valid"], digits.MNIST_PACKED])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("root", "variable", "where"),
    [
        ("argument", "variable", "argument"),
        (None, "variable", "variable"),
        (None, "~/variable", "home/variable"),
        (None, "", "home/.cache/dvae_lib"),
        (None, None, "home/.cache/dvae_lib"),
        ("~/argument", None, "home/argument"),
        ("", "variable", "."),
    ],
)
def test_the_folder_is_the_argument_or_the_variable_or_the_users_cache(tmp_path, monkeypatch, root, variable, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable is not None:
        monkeypatch.setenv("DVAE_DATA", variable)
    os.makedirs(tmp_path / where, exist_ok=True)
    assert not digits.mnist_is_at_hand(root)
    (tmp_path / where / digits.MNIST_PACKED).write_bytes(packed())
    assert digits.mnist_is_at_hand(root)
    assert torch.equal(binarized_mnist("test", root), expected("test"))


def test_at_hand_are_the_packed_file_or_all_three_public_ones(tmp_path):
    for name in FILES:
        assert not digits.mnist_is_at_hand(tmp_path)
        (tmp_path / name).touch()
    assert digits.mnist_is_at_hand(tmp_path)


# a network as it is


@pytest.mark.parametrize("failure", [500, 503, 403, 408, 429, "cut", "cut in a chunk", "empty", "silent"])
def test_what_may_pass_is_asked_for_again(server, tmp_path, monkeypatch, failure):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    server.answers = ["whole", failure, failure, failure]
    start = time.monotonic()
    assert torch.equal(binarized_mnist("test", tmp_path), expected("test"))
    assert time.monotonic() - start < 10
    assert server.asked == [NAMES["train"], *[NAMES["valid"]] * 4, NAMES["test"]]


def test_a_server_that_does_not_say_how_much_it_sends(server, tmp_path):
    server.answers = ["no length"] * 3
    assert torch.equal(binarized_mnist("test", tmp_path), expected("test"))
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("failure", "times", "message"),
    [
        (404, 1, "HTTP Error 404"),
        (410, 1, "HTTP Error 410"),
        (503, 4, "4 attempts failed"),
        ("cut", 4, "of 3136"),
    ],
)
def test_what_does_not_come_is_explained_and_leaves_nothing(server, tmp_path, failure, times, message):
    server.answers = ["whole", "whole", *[failure] * 9]
    with pytest.raises(OSError, match=message):
        binarized_mnist("train", tmp_path)
    assert server.asked[2:] == [NAMES["test"]] * times
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("made_up")
def test_without_a_network_the_error_says_what_to_put_where(tmp_path):
    with pytest.raises(OSError, match="cannot be downloaded") as caught:
        binarized_mnist("valid", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path), *FILES, digits.MNIST_ADDRESS, "DVAE_DATA", digits.MNIST_PACKED, "Connection refused"):
        assert part in message


def test_waits_become_longer(server, monkeypatch):
    monkeypatch.setattr(downloads, "WAIT", 1.5)
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.answers = [503] * 4
    with pytest.raises(OSError, match=r"4 attempts failed, the last with: .*503"):
        downloads.download(f"{digits.MNIST_ADDRESS}/{NAMES['test']}")
    assert waits == [1.5, 3, 6]


@pytest.mark.parametrize(("terminal", "switch", "shown"), [(True, "", True), (True, "1", False), (False, "", False)])
def test_a_bar_on_a_terminal_unless_it_is_switched_off(server, monkeypatch, terminal, switch, shown):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TQDM_DISABLE", switch)
    assert downloads.download(f"{digits.MNIST_ADDRESS}/{NAMES['test']}") == FILES[NAMES["test"]]
    assert ("binarized_mnist_test.amat: 100%" in screen.getvalue()) == shown
    assert ("3.14k/3.14k" in screen.getvalue()) == shown


# files that are not what they should be


@pytest.mark.parametrize("change", [lambda text: text[::-1], lambda text: text[:-1], lambda text: b"<html>"])
@pytest.mark.parametrize("where", ["network", "folder"])
def test_another_file_is_refused_and_not_kept(server, tmp_path, where, change):
    other = change(FILES[NAMES["valid"]])
    if where == "network":
        server.files[NAMES["valid"]] = other
    else:
        (tmp_path / NAMES["valid"]).write_bytes(other)
    before = os.listdir(tmp_path)
    with pytest.raises(
        ValueError, match=f"{NAMES['valid']} has the sha256 {hashlib.sha256(other).hexdigest()}, it must"
    ):
        binarized_mnist("train", tmp_path)
    assert os.listdir(tmp_path) == before


WHOLE = packed()


@contextlib.contextmanager
def folder_with(content, where):
    path = where / digits.MNIST_PACKED
    path.write_bytes(content)
    yield path
    assert path.read_bytes() == content


@pytest.mark.usefixtures("offline")
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255), st.sampled_from(sorted(SIZES)), st.booleans())
def test_a_damaged_packed_file_never_gives_other_images(tmp_path_factory, place, change, split, cut):
    """A byte that changed, or an end that is missing: an error that names the file, or the images all the same."""
    content = WHOLE[:place] if cut else WHOLE[:place] + bytes([WHOLE[place] ^ change]) + WHOLE[place + 1 :]
    with folder_with(content, tmp_path_factory.getbasetemp()) as path:
        message = None
        try:
            assert torch.equal(binarized_mnist(split, path.parent), expected(split))
        except ValueError as error:
            message = str(error)
        assert message or not cut
        assert not message or (message.startswith(f"{path} ") and "remove it to have it made again" in message)


def array_file(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"404 Not Found", "is damaged"),
        (array_file(np.zeros((2, 98), np.uint8)), "is damaged"),
        (packed({"train": np.zeros((2, 98), np.uint8)}), "is damaged"),
        (packed({"test": np.zeros((2, 98))}), "is damaged"),
        (packed({"test": np.zeros(98, np.uint8)}), "is damaged"),
        (packed({"test": np.zeros((2, 3, 98), np.uint8)}), "is damaged"),
        (packed({"test": np.array([{}])}), "is damaged"),
        (packed({"test": np.zeros((2, 98), np.uint8)}), "does not hold the test images, by their sha256"),
        (packed({"test": np.zeros((0, 98), np.uint8)}), "does not hold the test images"),
        (packed({"test": np.zeros((2, 0), np.uint8)}), "does not hold the test images"),
        (packed({"test": np.load(io.BytesIO(WHOLE))["train"]}), "does not hold the test images"),
    ],
    ids=range(12),
)
def test_a_packed_file_of_something_else(tmp_path, content, message):
    with folder_with(content, tmp_path) as path, pytest.raises(ValueError, match=rf"{path.name} {message}.*remove it"):
        binarized_mnist("test", tmp_path)


# what goes wrong on the disk


@pytest.mark.usefixtures("server")
def test_a_process_that_dies_while_it_writes_leaves_nothing_that_counts(tmp_path, monkeypatch):
    """Neither what it wrote up to then, nor, after the next one, a file beside the packed one."""

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", die)
        killed.setattr(Path, "unlink", lambda *_, **__: None)  # a process that is killed does not tidy up
        with pytest.raises(KeyboardInterrupt):
            binarized_mnist("test", tmp_path)
    (leftover,) = os.listdir(tmp_path)
    (tmp_path / leftover).rename(tmp_path / f".{digits.MNIST_PACKED}.123456789.new")  # of another process
    assert torch.equal(binarized_mnist("test", tmp_path), expected("test"))
    assert os.listdir(tmp_path) == [digits.MNIST_PACKED]


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_downloaded(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        binarized_mnist("test", tmp_path / "file" / "folder")
    assert server.asked == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", [digits.MNIST_PACKED, NAMES["train"]])
def test_what_cannot_be_read_is_not_called_damaged_or_missing(tmp_path, name):
    """A folder stands here for a file that the user may not read."""
    os.mkdir(tmp_path / name)
    with pytest.raises(IsADirectoryError, match=name):
        binarized_mnist("train", tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("all",), ValueError, "split must be one of train, valid, test, got 'all'"),
        ((["train"],), ValueError, r"split must be one of train, valid, test, got \['train'\]"),
        ((None,), ValueError, "split must be one of train, valid, test, got None"),
        (("train", 3), TypeError, "root must be a path or None, got int 3"),
        (("train", b"folder"), TypeError, "root must be a path or None, got bytes b'folder'"),
        (("train", False), TypeError, "root must be a path or None, got bool False"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        binarized_mnist(*arguments)


def test_the_checksum_is_that_of_the_standard():
    """The example "abc" of FIPS 180-4."""
    expected = "ba7816bf 8f01cfea 414140de 5dae2223 b00361a3 96177a9c b410ff61 f20015ad"
    assert downloads.sha256(b"abc") == expected.replace(" ", "")


# the chapter on them


@pytest.mark.parametrize("options", [[], ["-n", "2", "--dist", "loadfile"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("there", [False, True])
def test_a_notebook_that_needs_the_digits_is_left_out_where_they_are_not_at_hand(tmp_path, options, there):
    """As a whole, before it starts a kernel, and the end says why. The variable may name the folder from here."""
    for name, first in (("needing", "print(binarized_mnist('test'))"), ("plain", "print(1)")):
        cells = [nbformat.v4.new_code_cell(source) for source in ("x = 2", first, "print(x)")]
        cells.append(nbformat.v4.new_markdown_cell("`binarized_mnist()` is explained here"))
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    if there:
        (tmp_path / digits.MNIST_PACKED).touch()
    environment = {**os.environ, "DVAE_DATA": os.path.relpath(tmp_path, ROOT), "PYTHONPATH": str(ROOT / "tools")}
    options = ["-c", "pyproject.toml", "--rootdir", str(tmp_path), "-p", "conftest", "--nbval-lax", "--tb=no", *options]
    command = [sys.executable, "-m", "pytest", *options, *map(str, sorted(tmp_path.glob("*.ipynb")))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    last = done.stdout.splitlines()[-1]
    summary = done.stdout.partition("short test summary info")[2]
    if there:  # it is run; it lacks the import, and so its second cell and those after it fail
        assert "skipped" not in last
        assert "needing.ipynb::Cell 1" in summary
    else:
        assert ("failed" in last, "3 passed, 3 skipped" in last) == (False, True), done.stdout
        (line,) = [line for line in summary.splitlines() if "needing.ipynb" in line]
        assert line.startswith("SKIPPED [3] ")
        for part in ("needs the binarised MNIST", "binarized_mnist('test')", "DVAE_DATA"):
            assert part in line
    assert os.listdir(tmp_path).count(digits.MNIST_PACKED) == there


def test_a_variable_that_names_a_folder_from_here_is_made_absolute():
    """A notebook's kernel runs elsewhere."""
    code = "import conftest, os; print(os.environ['DVAE_DATA'])"
    for name, folder in (("some/folder", ROOT / "some" / "folder"), ("~/data", Path("~/data").expanduser())):
        environment = {**os.environ, "DVAE_DATA": name}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout == f"{folder}\n", done.stderr


@pytest.mark.parametrize(
    ("packed", "given", "expected"),
    [(True, None, "shared/data"), (False, None, "not set"), (True, "own", "own"), (True, "", "shared/data")],
)
def test_continuous_integration_takes_the_digits_that_lie_beside_the_clone(tmp_path, packed, given, expected):
    """The head of .ci/run, up to where it installs something."""
    (tmp_path / "clone" / ".ci").mkdir(parents=True)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    if packed:
        (tmp_path / "shared" / "data" / digits.MNIST_PACKED).touch()
    head, mark, _ = (ROOT / ".ci" / "run").read_text().partition("packages=()\n")
    assert mark
    (tmp_path / "clone" / ".ci" / "run").write_text(f'{head}printenv DVAE_DATA || echo "not set"\n')
    environment = {key: value for key, value in os.environ.items() if key != "DVAE_DATA"}
    environment |= {} if given is None else {"DVAE_DATA": given}
    command = ["bash", str(tmp_path / "clone" / ".ci" / "run")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    expected = str(tmp_path / expected) if "/" in expected else expected
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


# the true digits


@pytest.mark.skipif(not digits.mnist_is_at_hand(), reason="the binarised MNIST is not at hand: set DVAE_DATA")
@pytest.mark.parametrize(
    ("split", "size", "mean", "sha256"),
    [
        ("train", 50_000, 0.130562, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        ("valid", 10_000, 0.131127, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
        ("test", 10_000, 0.132512, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    ],
)
def test_the_true_digits(split, size, mean, sha256):
    """As text, written by Python alone, they are the public file. No image comes twice, and the corners are black."""
    images = binarized_mnist(split)
    assert (images.shape, images.dtype) == ((size, 1, 28, 28), torch.float32)
    assert images.unique().tolist() == [0, 1]
    assert float(images.mean()) == pytest.approx(mean, abs=1e-6)
    assert not images[..., ::27, ::27].any()
    assert len({row.tobytes() for row in images.byte().numpy()}) == size
    text = b"".join(b" ".join(b"01"[bit : bit + 1] for bit in row) + b"\n" for row in images.byte().flatten(1).numpy())
    assert hashlib.sha256(text).hexdigest() == sha256
