"""The gateway's part of batches: lines are checked (validation), kept and reported (service), handed out (zipping).

The controller releases them (controller/batches).
"""
