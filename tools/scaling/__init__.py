"""How KEDA and the HPA scale a pool, read from its manifests and simulated: `python -m tools.scaling --help`."""
