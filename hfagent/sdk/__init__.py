"""All that a connector author imports. Synchronous code only; connectors never see the pool, the vault or the event loop.

The parts: `config` (fields and their schema), `secret`, `driver` (lazy imports), `connector` (`BaseConnector` and the
capabilities), `sql`/`storage`/`llm`/`vectors` (bases per family), `probe` (test stages), `pool`, `registry`, `guard`
(statement guard), `arrow` (types and wire form), `network` (resolve, dial, TLS facts), `errormap`.
"""
