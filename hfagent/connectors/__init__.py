"""One connector type per file: file name = type name. `_`-prefixed modules are shared pieces of related types.

Imports: `sdk`, `model`, `foundation` and a parent connector only.
"""
