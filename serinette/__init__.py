"""Serinette: serverless music generation. This package is the language that gateway, workers and clients share."""

__version__ = "0.1.0"
