"""Batches under way: lines released into the lowest lane at a pace, their ends gathered, their files written.

`plan` decides, `release`, `gather` and `duty` act. Whatever dies in between is done again: a line is one job however
often it is released, an end is counted when it is first gathered, and a part is written before it is forgotten.
"""

from controller.batches.duty import Batches

__all__ = ["Batches"]
