"""Handlers: one line each, from a method's parameters to a service's verb. A handler never decides anything."""
