"""The systematic kill: each process dies before its n-th round trip to Redis or to the store, for every n.

What it was doing runs in a process of its own, and dies by SIGKILL (deaths.py): nothing is tidied up behind it that
would not be in production either. Then those who are left do their work, and the job must have ended exactly once
(ends.py).
"""
