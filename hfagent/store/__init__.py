"""The agent's own SQLite: connectors and all that belongs to them, datasets, sync states, runs, outbox, audit.

Synchronous, thread-safe. Not here: what the data means. The store keeps rows and promises that a change is whole or absent;
policy, masking and sealing belong to the floors above. `store.Store` is the way in.
"""
