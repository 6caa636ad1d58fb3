"""Stills: what each explorer shows as it opens, for a printout, for GitHub's viewer and for a page without scripts.

Drawn from the same networks as the live explorer, and with the same draws of the noise.
"""

from __future__ import annotations

import base64
import copy
import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from torch import Tensor

from dvae_lib.data import POSITIONS, all_squares
from dvae_lib.evaluation import exact_log_likelihood
from dvae_lib.layers import gaussian_kl
from dvae_lib.models import VariationalAutoencoder
from dvae_lib.plotting import image_grid, show_manifold, use_book_style
from dvae_lib.widgets.page_run import PageRun, uniforms
from dvae_lib.widgets.views import COUNTS, DRAWS, FIRST_DRAW, NOISES, NetworksView, View

CLEAN, NOISY, GROUND = "#009e73", "#f0e442", "#101418"  # the front end's colours
TRUTH = "#56b4e9"  # of the true posterior
PARTS = {  # of a bar: the front end's colours, and a pattern
    "base": ("#8a939c", ""),
    "mixture": ("#cc79a7", "//"),
    "corruption": ("#d55e00", ".."),
    "amortisation": ("#e69f00", "\\\\"),
}
CORNERS = np.array([[86, 180, 233], [240, 228, 66], [0, 190, 130], [235, 110, 60]]) / 255  # of the squares' places
BINARY = np.array([[0, 0, 0], [255, 255, 255], [230, 159, 0], [86, 180, 233]]) / 255  # ..., too many, missing
FRAMES, BAR_DRAWS, FIRST_BAR_DRAW, ZOOM = 9, 16, 19985, 8  # as in the front end
NOTE = "Still picture: the explorer as it opens. It is live in the built page and in Jupyter."
RUN_NOTE = (
    "Still picture: the explorer's run from this seed, made by PyTorch with the page's own draws, and so equal to it\n"
    "up to rounding, which grows. The explorer is live in the built page and in Jupyter."
)
FILM = (0, 100, 500, 2000)  # steps of the run after which its still shows the plane
RINGS = "Shaded: the true posterior. Thick ring: the clean picture's. Thin rings: those of 64 corruptions, K bright."
ELLIPSES = "Ellipses of two standard deviations: green, the clean picture's posterior; yellow, the input's."


def still(view: View) -> str | None:
    """Return a PNG, in base64, of what `view` shows; None for an explorer that shows nothing without a kernel."""
    if view.kind not in STILLS:
        return None
    file = io.BytesIO()
    with mpl.rc_context(), torch.no_grad():
        use_book_style()
        mpl.rcParams.update({"axes.titlesize": 8, "font.size": 8})
        figure = STILLS[view.kind](view)
        note = RUN_NOTE if view.kind == "train_in_page" else NOTE
        ellipses = RINGS if view.kind == "bound" else ELLIPSES
        note = f"{ellipses}\n{note}" if view.kind in ("denoise", "training_noise", "bound") else note
        figure.supxlabel(note, fontsize=8, color="#555555")
        figure.savefig(file, format="png", dpi=150)  # small: a page keeps several
    return base64.b64encode(file.getvalue()).decode()


def latent_map(view: Any) -> Figure:
    """The planes with the ring, and what is decoded there."""
    figure = Figure(figsize=(7.5, 3.1))
    axes = figure.subplots(1, 4, width_ratios=(2.6, 1, 2.6, 1)).reshape(2, 2)
    code = torch.tensor([[view.z1, view.z2]])
    for (plane, picture), (name, model) in zip(axes, _compared(view), strict=True):
        _plane(plane, view, name, model, view.manifold, getattr(view, "dots", False))
        _mark(plane.plot(view.z1, view.z2, "o", color="white", markersize=9, fillstyle="none")[0])
        _picture(picture, model.decode(code).sigmoid(), "decoded")
    return figure


def denoise(view: Any) -> Figure:
    """The picture and its corruption, both posteriors, and the reconstructions."""
    figure = Figure(figsize=(7.5, 3.0))
    axes = figure.subplot_mosaic([[0, 1, 2, 4, 5], [3, 1, 6, 4, 7]], width_ratios=(1, 2.4, 1, 2.4, 1))
    clean = _clean(view)
    noisy = corrupt(view.kind_of_noise, view.level, clean, view.seed)
    _picture(axes[0], clean, "clean picture")
    _picture(axes[3], noisy, "input")
    places = ((1, 2, 6), (4, 5, 7))
    for (plane, top, bottom), (name, model) in zip(places, _compared(view), strict=True):
        _plane(axes[plane], view, name, model, dots=False)
        posteriors = [torch.cat(model.encode(image)) for image in (clean, noisy)]  # each (2, 2)
        reach = view.limit / ZOOM
        first, second = posteriors[1][0].tolist()
        inset = axes[plane].inset_axes((0.62 * (first < 0), 0.62 * (second <= 0), 0.38, 0.38))
        inset.set(xlim=(first - reach, first + reach), ylim=(second - reach, second + reach))
        inset.set(xticks=[], yticks=[], facecolor=GROUND)
        for where in (axes[plane], inset):
            _posteriors(where, *posteriors)
        found = model.decode(posteriors[1][:1]).sigmoid()
        _picture(axes[top], found, "probabilities")
        wrong = ((found >= 0.5) != (clean >= 0.5)).sum().item()
        _picture(axes[bottom], _in_colour(found, clean), f"{wrong} wrong")
    return figure


def training_noise(view: Any) -> Figure:
    """The chosen network's plane and reconstruction, and the wrong pixels of all networks as bars."""
    figure = Figure(figsize=(7.5, 3.4))
    axes = figure.subplot_mosaic([[4, 0, 1, 2, 3], [4, 5, 5, 5, 5]], width_ratios=(3.4, 1, 1, 1, 1))
    clean = _clean(view)
    first = FIRST_BAR_DRAW + BAR_DRAWS * view.seed
    draws = torch.cat([corrupt(0, view.level, clean, first + draw) for draw in range(BAR_DRAWS)])
    noisy, wrong = corrupt(0, view.level, clean, view.seed), []
    for index, (name, model) in enumerate(_compared(view)):
        means = model.decode(model.encode(draws)[0]).sigmoid()
        wrong.append(((means >= 0.5) != (clean >= 0.5)).sum().item() / BAR_DRAWS)
        if index == view.index:
            _plane(axes[4], view, name, model)
            _posteriors(axes[4], *(torch.cat(model.encode(image)) for image in (clean, noisy)))
            found = model.decode(model.encode(noisy)[0]).sigmoid()
            shown = (clean, noisy, found, _in_colour(found, clean))
            for place, title in enumerate(("clean picture", "input", "probabilities", "at 1/2")):
                _picture(axes[place], shown[place], title)
    names = [f"{level:g}" for level in view.networks.levels]
    colours = ["#0072b2" if index == view.index else "#bbbbbb" for index in range(len(names))]
    axes[5].bar(names, wrong, color=colours)
    axes[5].set(xlabel="training noise $p$", ylabel="wrong pixels")
    return figure


def interpolate(view: Any) -> Figure:
    """The strips from square to square, between codes and between pixels, and the ways in the planes."""
    figure = Figure(figsize=(7.5, 4.9))
    bands: Any = figure.subfigures(2, 1, height_ratios=(1.85, 3))
    first, last = _ends(view)
    share = torch.linspace(0, 1, FRAMES)[:, None]
    ways = {}
    for axes, (name, model) in zip(bands[1].subplots(1, 2), _compared(view), strict=True):
        ends = [model.encode(image)[0] for image in (first, last)]  # each (1, 2)
        ways[f"{name}, codes"] = model.decode((1 - share) * ends[0] + share * ends[1]).sigmoid()
        _plane(axes, view, name, model, dots=view.kind == "interpolate")
        line = torch.cat(ends).T.numpy()
        _mark(axes.plot(*line, "-", color="white", linewidth=1)[0])
        now = (1 - view.position / 100) * ends[0] + view.position / 100 * ends[1]
        for code, colour in zip((*ends, now), (CLEAN, NOISY, "white"), strict=True):
            _mark(axes.plot(*code[0].tolist(), "o", color=colour, markersize=7, fillstyle="none")[0])
    ways["pixels"] = (1 - share[:, :, None, None]) * first + share[:, :, None, None] * last
    for axes, (name, pictures) in zip(bands[0].subplots(3, 1), ways.items(), strict=True):
        axes.imshow(image_grid(pictures, FRAMES).numpy(), vmin=0, vmax=1)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure


def train_in_page(view: Any) -> Figure:
    """The plane at some steps of the run, and its curves."""
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplot_mosaic([[0, 1, 2, 3], ["curves"] * 4], height_ratios=(1.25, 1))
    run = PageRun(view.seed)
    curves: list[tuple[float, float]] = []
    for place, steps in enumerate(FILM):
        with torch.enable_grad():
            curves += [run.step(view.p) for _ in range(steps - len(curves))]
        _plane(axes[place], view, f"step {steps:,}", copy.deepcopy(run.model).float().eval())
        axes[place].set(ylabel="$z_2$" if place == 0 else "")
    named = zip(("reconstruction", "divergence"), np.array(curves).T, ("#e69f00", "#56b4e9"), strict=True)
    for name, values, colour in named:
        pooled = values[: len(values) // 10 * 10].reshape(-1, 10).mean(1) if len(values) > 100 else values
        every = len(values) / len(pooled)
        axes["curves"].plot(every * (np.arange(len(pooled)) + 0.5), pooled, color=colour, label=name)
    axes["curves"].set(yscale="log", ylim=(0.5, 600), xlabel="steps", ylabel="nats per image")
    axes["curves"].set(title=f"training noise $p$ = {view.p:g}, seed {view.seed}", xlim=(0, FILM[-1]))
    axes["curves"].legend(frameon=False, ncols=2)
    return figure


def digit_denoise(view: Any) -> Figure:
    """The picture and its corruption, and the reconstructions of both networks."""
    figure = Figure(figsize=(7.5, 1.9))
    axes = figure.subplots(1, 2 + 2 * len(view.compared))
    clean = _from_hex(view.drawing or view.digits[view.digit])
    noisy = corrupt(view.kind_of_noise, view.level, clean, view.seed)
    _picture(axes[0], clean, "clean picture")
    _picture(axes[1], noisy, "input")
    for places, (name, model) in zip(axes[2:].reshape(-1, 2), _compared(view), strict=True):
        found = model.decode(model.encode(noisy)[0]).sigmoid()
        wrong = ((found >= 0.5) != (clean >= 0.5)).sum().item()
        _picture(places[0], found, name)
        _picture(places[1], _in_colour(found, clean), f"{wrong} wrong")
    return figure


def bound(view: Any) -> Figure:
    """The picture, the bars of ln p(x) and its bounds, and the posteriors between them."""
    figure = Figure(figsize=(7.5, 3.6))
    axes = figure.subplot_mosaic([[0, 2, 3], [1, 2, 3]], width_ratios=(1, 3, 2.6))
    clean, size = _clean(view), COUNTS[view.count]
    name, model = _compared(view)[view.index]
    draws = _corruptions(view, clean)
    found = bound_of(view)
    exact, climb = found["exact"], found[f"L_{size}"]
    _picture(axes[0], clean, "picture")
    _picture(axes[1], draws[0], "one corruption")
    mixture = ("mixture", exact - climb)
    bars = {
        "$\\ln p(x)$": [],
        f"$L_{{{size}}}$": [mixture],
        "$L_{dvae}$": [mixture, ("corruption", climb - found["L_1"])],
        "clean ELBO": [("amortisation", exact - found["elbo"])],
    }
    low = min(found["L_1"], found["elbo"])
    top = exact + 0.3 * (exact - low) if exact - low < -exact else 0.0  # as in the page, not always from 0
    for place, parts in enumerate(bars.values()):
        foot = top
        for part, gap in (("base", top - exact), *parts):
            colour, hatch = PARTS[part]
            axes[2].bar(place, -gap, 0.7, foot, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
            foot -= gap
        if top:  # torn off
            teeth = top + 0.03 * (low - top) * (np.arange(9) % 2 == 0)
            axes[2].fill_between(place + np.linspace(-0.36, 0.36, 9), 0, teeth, color="white", zorder=2)
        axes[2].text(place, foot, f"{foot:.2f}".replace("-", "\u2212"), ha="center", va="top")
    axes[2].axhline(exact, color="black", linestyle="--", linewidth=0.8)
    axes[2].set(ylabel="nats", title="log-likelihood and bounds", ylim=(low - 0.12 * (top - low), top))
    axes[2].set_xticks(range(len(bars)), bars)
    axes[2].xaxis.tick_top()
    axes[2].tick_params("x", length=0)
    axes[2].spines[:].set_visible(False)
    _magnified(axes[3], name, model, clean, draws, size)
    return figure


def bit_switches(view: Any) -> Figure:
    """The probabilities of the bits with the switches, the picture, and what is decoded."""
    figure = Figure(figsize=(7.5, 2.6))
    axes = figure.subplots(1, 4, width_ratios=(2.2, 1, 1, 1))
    clean = _clean(view)
    code = torch.tensor([[float(digit) for digit in view.code]])
    shares = view.networks.answer(clean.flatten(1), 0, 3).sigmoid()[0]
    found = view.networks.answer(code, 3).sigmoid().view_as(clean)
    places = range(1, len(shares) + 1)
    axes[0].barh(places, shares.numpy(), height=0.6, color="#0072b2", label="probability of a 1")
    axes[0].plot(code[0].numpy(), places, "o", color="#d55e00", markersize=4, label="switch", clip_on=False)
    axes[0].set(xlabel="probability of a 1 (bars), switch (dots)", ylabel="bit", xlim=(0, 1), yticks=places)
    axes[0].invert_yaxis()
    wrong = ((found >= 0.5) != (clean >= 0.5)).sum().item()
    _picture(axes[1], clean, "picture")
    _picture(axes[2], found, "decoded")
    _picture(axes[3], _in_colour(found, clean), f"{wrong} wrong")
    return figure


def noise_levels(view: Any) -> Figure:
    """The square, its noisy copy, the network's guess and the exact posterior mean."""
    figure = Figure(figsize=(7.5, 2.3))
    squares, std = all_squares().flatten(1), view.deviation()
    clean = squares[[POSITIONS * view.row + view.column]]
    noisy = corrupt(NOISES.index("Gaussian"), std, clean, view.seed)
    exact = (-torch.cdist(noisy, squares).square() / (2 * std**2)).softmax(1) @ squares
    shown = {
        "clean square": clean,
        f"noisy, $\\sigma$ = {std:.2f}": 0.5 + (noisy - 0.5) / (1 + 3 * std),
        "network": view.guess(noisy),
        "exact posterior mean": exact,
    }
    for axes, (title, image) in zip(figure.subplots(1, 4), shown.items(), strict=True):
        _picture(axes, image.view(24, 24), title)
    return figure


STILLS: dict[str, Callable[[Any], Figure]] = {
    "latent_map": latent_map,
    "denoise": denoise,
    "training_noise": training_noise,
    "interpolate": interpolate,
    "train_in_page": train_in_page,
    "digit_map": latent_map,
    "digit_interpolate": interpolate,
    "digit_denoise": digit_denoise,
    "bound": bound,
    "bit_switches": bit_switches,
    "noise_levels": noise_levels,
}


def corrupt(kind: int, level: float, image: Tensor, seed: int) -> Tensor:
    """Return `image` with the noise NOISES[kind], drawn as the front end draws it from this seed."""
    u, v = uniforms(seed, 2 * image.numel()).reshape(-1, 2).T.reshape(2, *image.shape)
    clean = image.numpy()
    if kind == NOISES.index("Gaussian"):
        noisy = clean + level * np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
    else:
        noisy = np.where(u >= level, clean, [1 - clean, 0 * clean, v < 0.5][kind])
    return torch.from_numpy(noisy.astype(np.float32))


def _corruptions(view: Any, clean: Tensor) -> Tensor:
    """The corruptions that the front end draws: (DRAWS, 1, 24, 24)."""
    seeds = range(FIRST_DRAW + DRAWS * view.seed, FIRST_DRAW + DRAWS * (view.seed + 1))
    return torch.cat([corrupt(0, view.level, clean, seed) for seed in seeds])


@torch.no_grad()
def bound_of(view: Any) -> dict[str, float]:
    """Return ln p(x), "exact", the bound of the clean picture, "elbo", and "L_K" for each K of `COUNTS`, in nats.

    Of the same corruptions as in the front end; means under the Gaussians are taken with Gauss-Hermite rules of 20
    nodes along each axis.
    """
    picture = _clean(view)
    draws, clean = _corruptions(view, picture), picture.double()
    model = _compared(view)[view.index][1].double()
    points, weights = np.polynomial.hermite_e.hermegauss(20)
    eps = torch.cartesian_prod(*2 * [torch.from_numpy(points)])  # (400, 2)
    share = torch.outer(*2 * [torch.from_numpy(weights / weights.sum())]).flatten()
    parameters = [torch.cat(part) for part in zip(model.encode(clean), model.encode(draws.double()), strict=True)]
    mean, log_variance = parameters  # the clean picture's first
    codes = mean[:, None] + (log_variance / 2).exp()[:, None] * eps  # (1 + draws, 400, 2)
    logits = torch.cat([model.decode(some).flatten(1) for some in codes])  # (.., pixels)
    likelihood = logits @ clean.flatten() - torch.nn.functional.softplus(logits).sum(1)
    elbo = likelihood.view(len(codes), -1) @ share - gaussian_kl(mean, log_variance)  # (1 + draws,)
    found = {"exact": exact_log_likelihood(model, clean).value.item(), "elbo": elbo[0].item()}
    mean, log_variance, codes = mean[1:], log_variance[1:], codes[1:]
    scaled = (codes[:, :, None] - mean) / (log_variance / 2).exp()  # (draws, 400, draws, 2)
    log_q = -(scaled.square().sum(3) + log_variance.sum(1)) / 2  # (draws, 400, draws), up to a constant
    own = log_q.diagonal(dim1=0, dim2=2).T  # (draws, 400)
    for size in COUNTS:
        group = torch.arange(len(draws)) // size
        others = torch.where(group[:, None] == group, 0.0, -math.inf)[:, None]  # (draws, 1, draws)
        regained = own - (log_q + others).logsumexp(2) + math.log(size)
        found[f"L_{size}"] = (elbo[1:] + regained @ share).mean().item()
    return found


def _magnified(axes: Axes, name: str, model: VariationalAutoencoder, clean: Tensor, draws: Tensor, bright: int) -> None:
    """The part of the code plane that holds the true posterior and the encoder's, with the posterior shaded."""
    mean, log_variance = model.encode(torch.cat([clean, draws]))
    low, high = mean[1:].quantile(torch.tensor([0.1, 0.9]), dim=0)
    reach = 2 * (log_variance[0] / 2).exp()
    low, high = torch.minimum(low, mean[0] - reach), torch.maximum(high, mean[0] + reach)
    centre, half = (low + high) / 2, max(0.1, 0.75 * (high - low).max().item())
    line = torch.linspace(-half, half, 81)
    codes = torch.stack(torch.meshgrid(centre[0] + line, centre[1] + line, indexing="xy"), 2).flatten(0, 1)
    logits = model.decode(codes).flatten(1)
    log_joint = logits @ clean.flatten() - torch.nn.functional.softplus(logits).sum(1) - codes.square().sum(1) / 2
    shade = (log_joint - log_joint.max()).exp().view(81, 81).numpy()
    (left, bottom), (right, top) = (centre - half).tolist(), (centre + half).tolist()
    colours = LinearSegmentedColormap.from_list("truth", [GROUND, TRUTH])
    axes.imshow(shade, cmap=colours, extent=(left, right, bottom, top), origin="lower", interpolation="bilinear")
    for place in reversed(range(len(mean))):
        (first, second), (width, height) = mean[place].tolist(), (4 * (log_variance[place] / 2).exp()).tolist()
        ring = Ellipse((first, second), width, height, fill=False, alpha=1 if place <= bright else 0.3)
        ring.set(edgecolor=NOISY if place else CLEAN, linewidth=0.9 if place else 2.2)
        axes.add_patch(ring)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", title=f"codes of the {name}", facecolor=GROUND, aspect="equal")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _compared(view: NetworksView) -> list[tuple[str, VariationalAutoencoder]]:
    levels = [view.networks.levels[index] for index in view.compared]
    return [(f"DVAE, $p$ = {level:g}" if level else "VAE", view.networks.model(level)) for level in levels]


def _clean(view: Any) -> Tensor:
    """The picture that is drawn, or the square of the sliders: (1, 1, 24, 24)."""
    if not view.drawing:
        return all_squares()[[POSITIONS * view.row + view.column]]
    return _from_hex(view.drawing)


def _from_hex(digits: str) -> Tensor:
    """The square picture that hexadecimal digits tell, four pixels a digit: (1, 1, size, size)."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    size = math.isqrt(len(bits))
    return torch.from_numpy(bits).float().reshape(1, 1, size, size)


def _ends(view: Any) -> tuple[Tensor, Tensor]:
    """The first and the last picture of a way: each (1, 1, size, size)."""
    if view.kind == "digit_interpolate":
        return _from_hex(view.digits[view.first_digit]), _from_hex(view.digits[view.last_digit])
    squares = all_squares()
    return squares[[POSITIONS * view.first_row + view.first_column]], squares[
        [POSITIONS * view.last_row + view.last_column]
    ]


def _picture(axes: Axes, image: Any, title: str) -> None:
    axes.imshow(np.asarray(image).squeeze(), vmin=0, vmax=1)
    axes.set_title(title)
    axes.set(xticks=[], yticks=[], anchor="N")


def _in_colour(found: Tensor, truth: Tensor) -> np.ndarray:
    """Black and white at 1/2, in colour where that is not `truth`: (height, width, 3)."""
    painted, wanted = (image.squeeze() >= 0.5 for image in (found, truth))
    return BINARY[torch.where(painted == wanted, painted.int(), 3 - painted.int()).numpy()]


def _plane(
    axes: Axes, view: NetworksView, name: str, model: VariationalAutoencoder, manifold: bool = True, dots: bool = True
) -> None:
    """The manifold, dimmed for dots, and the codes of the 256 squares, coloured by place, those beyond the edge at it.

    Digits have no dots, and are brighter, as on the page.
    """
    axes.set(facecolor=GROUND, title=name, aspect="equal")
    if manifold:
        size = model.configuration["image_shape"][-1]
        tiles = 480 // size  # as on the page: 20 squares or 17 digits
        dimmed = 2.4 if size == 24 else 1.3
        show_manifold(model, axes, tiles, (1 - 1 / tiles) * view.limit).images[0].set_clim(0, dimmed)
    if dots:
        down, right = np.indices((POSITIONS, POSITIONS)).reshape(2, -1, 1) / (POSITIONS - 1)
        shares = np.hstack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])
        first, second = model.encode(all_squares())[0].clamp(-view.limit, view.limit).T.numpy()
        axes.scatter(first, second, s=5, c=shares @ CORNERS, linewidths=0, clip_on=False)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-view.limit, view.limit), ylim=(-view.limit, view.limit))
    axes.set(xticks=[-view.limit, 0, view.limit], yticks=[-view.limit, 0, view.limit])


def _mark(artist: Any) -> None:
    artist.set(path_effects=[withStroke(linewidth=3, foreground=GROUND)], zorder=3)


def _posteriors(axes: Axes, clean: Tensor, noisy: Tensor) -> None:
    """Two posteriors, each a mean and a log-variance, (2, 2), as ellipses of two standard deviations, joined."""
    _mark(axes.plot(*torch.stack([clean[0], noisy[0]]).T.numpy(), "-", color="white", linewidth=1)[0])
    least = 0.012 * np.ptp(axes.get_xlim())  # that it can be seen
    for (mean, log_variance), colour in ((clean, CLEAN), (noisy, NOISY)):
        width, height = (4 * (log_variance / 2).exp()).clamp(min=least).tolist()
        ellipse = Ellipse(mean.tolist(), width, height, fill=False, edgecolor=colour, linewidth=1.5)
        _mark(axes.add_patch(ellipse))
