"""Batches under way: a producer of jobs. Their lines are released into the lowest lane at a pace, and what became of
them is written to the store.

`plan` decides, `release` and `duty` act. Whatever dies in between is done again: a line is one job however often it is
released, and a part's lines are written before the part is closed.
"""

from controller.batches.duty import Batches

__all__ = ["Batches"]
