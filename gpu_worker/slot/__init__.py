"""A slot: one RQ worker process that holds one job at a time and lets the engine sing it."""
