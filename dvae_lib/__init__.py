"""dvae_lib: the denoising variational auto-encoder, in as little code as it takes to read it in one sitting."""

from dvae_lib.checkpoints import load_checkpoint, save_checkpoint
from dvae_lib.data import all_squares, rectangles, squares
from dvae_lib.evaluation import (
    Estimate,
    best_square_iou,
    denoising_bound,
    elbo,
    importance_weighted_bound,
)
from dvae_lib.layers import KullbackLeiblerDivergence, ReparameterizationSampler, gaussian_kl
from dvae_lib.models import GaussianHeads, VariationalAutoencoder, mlp_vae
from dvae_lib.noise import BernoulliNoise, GaussianNoise, MaskingNoise, SaltAndPepperNoise
from dvae_lib.plotting import image_grid, latent_grid, plot_protocol, show_manifold
from dvae_lib.training import Protocol, TrainingConfig, default_device, train
from dvae_lib.verify import verify_close, verify_mean

__all__ = [
    "BernoulliNoise",
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
    "best_square_iou",
    "default_device",
    "denoising_bound",
    "elbo",
    "gaussian_kl",
    "image_grid",
    "importance_weighted_bound",
    "latent_grid",
    "load_checkpoint",
    "mlp_vae",
    "plot_protocol",
    "rectangles",
    "save_checkpoint",
    "show_manifold",
    "squares",
    "train",
    "verify_close",
    "verify_mean",
]
__version__ = "0.1.0"
