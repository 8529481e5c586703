"""One session per connection: framing, handshake, access checks, dispatch to the services. No feature lives here.

    Connection (bytes)  →  Session (messages, requests in flight)  →  Dispatcher (validate, call, encode)  →  handlers

Architecture Invariant: nothing a client sends, or fails to read, stops another client's requests.
"""
