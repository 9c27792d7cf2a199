"""A slot: one RQ worker process that holds one job at a time and has the engine generate it."""
