"""What is kept of batches: status, cursor and counts in Redis (repository), lines and results in the store (lines).

How a line fares stands in the record of its job and nowhere else; `lines` reads it there.
"""
