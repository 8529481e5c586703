"""hfagent: a data agent that runs beside the data.

Importing this package costs nothing: no driver, no event loop, no pydantic. Everything is imported where it is used.
"""

__version__ = "0.1.0"
