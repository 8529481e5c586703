"""Every method of the agent, declared once: name, parameters, result, access, documentation. One file per namespace.

From this table come dispatch, validation, permission checks, the OpenRPC document, the method reference, the TypeScript
types and the command line's help. Nothing here does anything: handlers are in `server/handlers`.
"""
