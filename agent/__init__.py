"""The edge camera agent: what a node runs. Imports nothing by itself."""

__version__ = "0.1.0"
