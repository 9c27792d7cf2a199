"""Serinette on a real cluster: docs/cluster-tests.md tells how to run it."""
