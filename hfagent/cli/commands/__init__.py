"""One file per group of commands: `register(commands)` adds the parsers, `run` functions get the `App`."""
