"""Sealed credentials: seal, open, rotate, recover. Nothing outside this package ever sees a key, and only this package
imports the cipher (inside functions, so that importing it costs nothing).

Not here: where the sealed bytes are kept (`store`), and when rotation happens (`services`). `vault.Vault` is the way in.
"""
