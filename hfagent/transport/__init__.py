"""A connected stream of framed messages, plus who is at the other end: unix socket, TCP on loopback, stdio.

Nothing here knows what a message means. No asyncio either: the codec is pure, and listeners are plain bound sockets which
the server hands to its event loop.
"""
