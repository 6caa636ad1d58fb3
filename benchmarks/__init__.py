"""The training step, timed beside its peers: `python -m benchmarks.bench` and `python -m benchmarks.ladder`."""
