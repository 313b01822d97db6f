"""Svitlo: trains a small language model from scratch on a computer whose power may fail at any moment."""

__version__ = "0.1.0"
