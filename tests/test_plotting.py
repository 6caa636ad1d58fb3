"""The pictures, read back from the tensors and the matplotlib objects that draw them."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from torch import nn

from dvae_lib import Protocol, image_grid, latent_grid, mlp_vae, plot_protocol, show_manifold
from dvae_lib.plotting import PALETTE, use_book_style


@given(*(st.integers(low, high) for low, high in ((1, 9), (1, 4), (1, 4), (1, 5), (0, 3))))
def test_grid_holds_every_image_and_grey_elsewhere(n, height, width, columns, padding):
    images = torch.rand(n, 1, height, width, dtype=torch.float64)
    grid = image_grid(images, columns, padding)
    rows = (n + columns - 1) // columns
    assert grid.shape == (rows * height + (rows - 1) * padding, columns * width + (columns - 1) * padding)
    assert grid.dtype == images.dtype
    grey = torch.ones_like(grid, dtype=torch.bool)
    for i in range(n):
        top, left = i // columns * (height + padding), i % columns * (width + padding)
        place = (slice(top, top + height), slice(left, left + width))
        assert torch.equal(grid[place], images[i, 0])
        grey[place] = False
    assert (grid[grey] == 0.5).all()


def test_grid_is_a_copy_without_a_graph():
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    grid = image_grid(images, 1, padding=0)
    assert not grid.requires_grad
    grid.fill_(1)
    assert not images.any()


def test_codes_of_the_article():
    """0.1 i - 1.05 for i = 1 .. 20 on both axes, from the top left picture, row by row."""
    axis = [0.1 * i - 1.05 for i in range(1, 21)]
    expected = torch.tensor([[first, second] for second in reversed(axis) for first in axis])
    torch.testing.assert_close(latent_grid(), expected, atol=1e-6, rtol=0)


def test_codes_of_a_single_picture_and_of_no_extent():
    assert latent_grid(1).tolist() == [[0, 0]]
    assert latent_grid(2, 0).tolist() == 4 * [[0, 0]]


class TwoTones(nn.Module):
    """Decodes 2 x 2 images: the upper pixels show z1, the lower ones z2, as logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def decode(self, codes):
        assert not torch.is_grad_enabled()
        return (self.scale * codes)[:, None, :, None].expand(-1, 1, 2, 2)


def drawn(axes):
    """The picture as the reader sees it: rows from the top, and its extent."""
    (image,) = axes.images
    assert (image.origin, image.get_clim()) == ("upper", (0, 1))
    return np.asarray(image.get_array()), image.get_extent()


def test_manifold_has_z1_to_the_right_and_z2_upwards():
    """The picture that covers the point (z1, z2) of the axes shows the probabilities decoded from (z1, z2)."""
    axes = show_manifold(TwoTones())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("code $z_1$", "code $z_2$")
    picture, (left, right, bottom, top) = drawn(axes)
    assert picture.shape == (40, 40)
    for z1, z2 in [(-0.95, 0.95), (0.95, 0.95), (-0.95, -0.95), (0.35, -0.55)]:
        row = 2 * int((top - z2) / (top - bottom) * 20)
        column = 2 * int((z1 - left) / (right - left) * 20)
        upper, lower = 1 / (1 + np.exp(-3 * np.array([z1, z2])))
        cell = picture[row : row + 2, column : column + 2]
        np.testing.assert_allclose(cell, [[upper, upper], [lower, lower]], atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("size", "limit", "edge"), [(20, 0.95, 1.0), (2, 1.0, 2.0), (5, 2.0, 2.5), (1, 1.5, 1.5)])
def test_manifold_extends_half_a_picture_beyond_the_outer_codes(size, limit, edge):
    _, extent = drawn(show_manifold(TwoTones(), size=size, limit=limit))
    assert extent == pytest.approx((-edge, edge, -edge, edge))


def test_manifold_takes_the_axes_that_it_is_given():
    _, axes = plt.subplots()
    assert show_manifold(TwoTones(), axes, size=3) is axes
    assert len(axes.images) == len(plt.get_fignums()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_manifold_of_a_real_model_of_any_dtype(dtype):
    model = mlp_vae(hidden_size=8).to(dtype)
    picture, _ = drawn(show_manifold(model, size=3, limit=1.0))
    first = model.decode(torch.tensor([[-1.0, 1.0]], dtype=dtype)).float().sigmoid()[0, 0].detach()
    np.testing.assert_allclose(picture[:24, :24], first, atol=1e-6)


DRAWN = ("reconstruction", "kl", "mean", "log_variance_mean")  # in the order of the axes


def protocol(n=7, seed=0):
    return Protocol(*np.random.default_rng(seed).uniform(0.5, 2, (6, n)).astype(np.float32))


@pytest.mark.parametrize(
    ("steps", "window", "groups"),
    [
        (7, {"window": 1}, [[step] for step in range(7)]),
        (7, {"window": 3}, [[0, 1, 2], [3, 4, 5]]),
        (7, {}, [range(7)]),
        (120, {}, [range(50), range(50, 100)]),
    ],
)
def test_lines_are_window_means(steps, window, groups):
    """Of 50 steps if not given; an incomplete last window is left out, and a run shorter than a window is one point."""
    run = protocol(steps)
    figure = plot_protocol(run, **window)
    for axes, name in zip(figure.axes, DRAWN, strict=True):
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_xdata(), [np.mean(group) for group in groups])
        assert (line.get_marker() == ".") == (len(groups) == 1)  # a line through one point is none
        column = getattr(run, name)
        np.testing.assert_allclose(line.get_ydata(), [column[list(group)].mean() for group in groups], rtol=1e-6)


def test_band_is_one_standard_deviation():
    run = protocol()
    axes = plot_protocol(run, window=1).axes[3]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for step in range(7):
        low, high = run.log_variance_mean[step] + np.array([-1, 1]) * run.log_variance_std[step]
        heights = corners[corners[:, 0] == step, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low, high), rel=1e-5)


def test_runs_by_name_share_the_axes_and_have_a_legend():
    """More runs than there are line styles: the styles come again, told apart by their colours."""
    runs = {name: protocol(4 + seed, seed) for seed, name in enumerate(["VAE", "DVAE", "third", "fourth", "fifth"])}
    figure = plot_protocol(runs, window=1)
    for axes, name in zip(figure.axes, DRAWN, strict=True):
        assert [line.get_label() for line in axes.lines] == list(runs)
        for line, run in zip(axes.lines, runs.values(), strict=True):
            np.testing.assert_allclose(line.get_ydata(), getattr(run, name))
        assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-.", ":", "-"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(runs)


def test_axes_of_one_run_say_what_they_show_without_a_legend():
    axes = plot_protocol(protocol()).axes
    assert [each.get_ylabel().split()[0] for each in axes] == ["reconstruction", "divergence", "mean", "log-variance:"]
    assert [each.get_xlabel() for each in axes] == ["", "", "step", "step"]
    assert [each.get_yscale() for each in axes] == ["log", "linear", "linear", "linear"]
    assert all("nats per image" in each.get_ylabel() for each in axes[:2])
    assert axes[0].get_legend() is None
    assert all(axes[0].get_shared_x_axes().joined(axes[0], each) for each in axes)


def test_book_style():
    with mpl.rc_context():
        use_book_style()
        axes = plt.subplots()[1]
        axes.plot([0, 1])
        image = axes.imshow(np.zeros((2, 2)))
        assert (image.get_cmap().name, image.get_interpolation()) == ("gray", "nearest")
        assert [side for side, spine in axes.spines.items() if not spine.get_visible()] == ["right", "top"]
        assert to_hex(axes.lines[0].get_color()).upper() == PALETTE[0]
        assert to_hex(axes.figure.get_facecolor()) == to_hex(mpl.rcParams["savefig.facecolor"]) == "#ffffff"
    assert len(set(PALETTE)) == len(PALETTE) == 7


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (image_grid, (torch.zeros(2, 3, 3), 1), ValueError, r"images must have shape \(n, channels,"),
        (image_grid, (torch.zeros(2, 3, 4, 4), 2), ValueError, r"images must have shape \(n, 1, height, width\), got"),
        (image_grid, (torch.zeros(2, 1, 3, 3), 0), ValueError, "columns must be at least 1, got 0"),
        (image_grid, (torch.zeros(2, 1, 3, 3), 1, -1), ValueError, "padding must be at least 0, got -1"),
        (latent_grid, (0, 1.0), ValueError, "size must be at least 1, got 0"),
        (latent_grid, (2, -1.0), ValueError, "limit must be finite and at least 0, got -1.0"),
        (show_manifold, (TwoTones(), None, 0), ValueError, "size must be at least 1, got 0"),
        (show_manifold, (TwoTones(), None, 2, 0), ValueError, "limit must be greater than 0, got 0"),
        (show_manifold, (mlp_vae((1, 2, 2), 3, 4), None, 3), ValueError, r"codes must .* \(n, 3\), got \(9, 2\)"),
        (plot_protocol, (protocol(), 0), ValueError, "window must be at least 1, got 0"),
        (plot_protocol, ({},), ValueError, "protocols must hold at least one protocol, got none"),
        (plot_protocol, ({"VAE": protocol(3), "DVAE": protocol(0)},), ValueError, ".* got an empty one as 'DVAE'"),
        (plot_protocol, ({"VAE": 3},), TypeError, "protocols must hold Protocols, got int as 'VAE'"),
        (plot_protocol, ([1],), TypeError, "protocols must be a Protocol or a mapping to Protocols, got list"),
    ],
)
def test_arguments_that_do_not_fit(function, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        function(*arguments)
