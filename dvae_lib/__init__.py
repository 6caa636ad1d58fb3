"""dvae_lib: the denoising variational auto-encoder, as the book's chapters develop it."""

from dvae_lib.checkpoints import load_checkpoint, save_checkpoint, shipped
from dvae_lib.configuration import BernoulliProtocol, Protocol, TrainingConfig
from dvae_lib.data import all_squares, binarized_mnist, rectangles, squares
from dvae_lib.evaluation import (
    Estimate,
    best_square_iou,
    denoising_bound,
    elbo,
    exact_log_likelihood,
    importance_weighted_bound,
    iou,
)
from dvae_lib.layers import (
    BernoulliDivergence,
    ConcreteSampler,
    KullbackLeiblerDivergence,
    ReparameterizationSampler,
    bernoulli_kl,
    gaussian_kl,
)
from dvae_lib.models import (
    BernoulliHead,
    GaussianHeads,
    VariationalAutoencoder,
    bernoulli_vae,
    convolutional_vae,
    mlp_vae,
)
from dvae_lib.noise import BernoulliNoise, GaussianNoise, MaskingNoise, SaltAndPepperNoise
from dvae_lib.plotting import image_grid, latent_grid, plot_protocol, show_manifold
from dvae_lib.runs.devices import default_device
from dvae_lib.training import train, training_step
from dvae_lib.verify import verify_close, verify_mean

__all__ = [
    "BernoulliDivergence",
    "BernoulliHead",
    "BernoulliNoise",
    "BernoulliProtocol",
    "ConcreteSampler",
    "Estimate",
    "GaussianHeads",
    "GaussianNoise",
    "KullbackLeiblerDivergence",
    "MaskingNoise",
    "Protocol",
    "ReparameterizationSampler",
    "SaltAndPepperNoise",
    "TrainingConfig",
    "VariationalAutoencoder",
    "all_squares",
    "bernoulli_kl",
    "bernoulli_vae",
    "best_square_iou",
    "binarized_mnist",
    "convolutional_vae",
    "default_device",
    "denoising_bound",
    "elbo",
    "exact_log_likelihood",
    "gaussian_kl",
    "image_grid",
    "importance_weighted_bound",
    "iou",
    "latent_grid",
    "load_checkpoint",
    "mlp_vae",
    "plot_protocol",
    "rectangles",
    "save_checkpoint",
    "shipped",
    "show_manifold",
    "squares",
    "train",
    "training_step",
    "verify_close",
    "verify_mean",
]
__version__ = "0.1.0"
