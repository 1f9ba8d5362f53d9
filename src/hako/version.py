"""The one place that holds hako's version."""

__version__ = "0.1.0"
