"""Explorers of noise and code that run in the page, with and without a kernel.

The networks' weights travel in the page's widget state, once, as 8-bit integers. The front end, widgets.mjs, encodes,
samples, decodes and draws; its controls are ipywidgets joined to it in the browser. Nothing waits for Python.

Explained in the chapter "Play: noise and code". Nothing else in the library imports this package, which alone needs
ipywidgets and anywidget.
"""

from dvae_lib.widgets.digits import DigitDenoise, DigitInterpolate, DigitMap
from dvae_lib.widgets.explorers import Bound, Denoise, Interpolate, LatentMap, TrainingNoise, TrainInPage
from dvae_lib.widgets.further import BitSwitches, Layers, NoiseLevels
from dvae_lib.widgets.networks import LEVELS, Networks
from dvae_lib.widgets.train_again import TrainAgain
from dvae_lib.widgets.views import COUNTS, LIMIT, NOISES, SPEEDS

__all__ = [
    "COUNTS",
    "LEVELS",
    "LIMIT",
    "NOISES",
    "SPEEDS",
    "BitSwitches",
    "Bound",
    "Denoise",
    "DigitDenoise",
    "DigitInterpolate",
    "DigitMap",
    "Interpolate",
    "LatentMap",
    "Layers",
    "Networks",
    "NoiseLevels",
    "TrainAgain",
    "TrainInPage",
    "TrainingNoise",
]
