"""A KServe predictor for GPT-J-6B."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gptj-predictor")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
