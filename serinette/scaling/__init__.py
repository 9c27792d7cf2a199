"""How KEDA and the HPA scale a pool, read from its manifests: for `serinette doctor` and `serinette bench scale`."""
