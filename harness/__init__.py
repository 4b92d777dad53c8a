"""A distributed benchmark harness for training sparse neural networks."""

__version__ = "0.1.0"
