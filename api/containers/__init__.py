"""Containers as jobs: what the gateway and maintenance both know of them."""
