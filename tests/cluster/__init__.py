"""Serinette on a real cluster: docs/cluster-tests.md says how to run it."""
