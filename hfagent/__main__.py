"""Entry point. Two commands start as fast as Python itself, because editors and scripts start them over and over:
`--version` and the forwarder. Everything else goes through the command line proper.
"""

from __future__ import annotations

import sys

import hfagent

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in (["--version"], ["-V"]):
        print(f"hfagent {hfagent.__version__}")
        return 0
    if words[:1] == ["rpc"]:
        from hfagent.cli.forward import forward

        return forward(words[1:])
    from hfagent.cli.main import main as command_line

    return command_line(words)


if __name__ == "__main__":
    sys.exit(main())
