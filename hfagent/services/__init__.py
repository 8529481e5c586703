"""The verbs of the agent, one file each. The only place with policy; faces translate to and from it.

Everything public here is `async` and safe to call from the event loop. Blocking work (drivers, SQLite, files) goes
through `workers.py`, the only bridge.
"""
