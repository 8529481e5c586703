"""Stand-ins for servers that cannot be installed here. Each runs in a process and an environment of its own."""
