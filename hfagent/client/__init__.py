"""Thin clients: find or start the daemon, call a method, get its result model. No service code.

`sync` is the command line's (no event loop to import), `aio` everybody else's; `launch` finds or starts the daemon.
"""
