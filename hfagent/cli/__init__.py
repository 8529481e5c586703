"""The command line: a thin face over the client. A verb parses, calls, prints; it decides nothing.

`forward.py` is the exception: the forwarder of editors and scripts, built on the standard library alone.
"""
