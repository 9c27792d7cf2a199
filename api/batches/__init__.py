"""Batches: read and checked (reading, checking), kept (book in Redis, shelf in the store), handed out (desk, files).

Their lines are released and gathered by controller/batches.py.
"""
