"""Runs containers as Kubernetes Jobs: judging.py and plan.py decide, duty.py, cluster.py and carrying.py do."""

from controller.containers.duty import Containers

__all__ = ["Containers"]
