"""`hfagent call` and `hfagent methods`: every method of the protocol, from the table itself."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from hfagent.cli.app import App, Commands
from hfagent.foundation.errors import UserError
from hfagent.protocol.table import METHODS

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    verb = commands.verb("call", "Call any method of the agent with JSON parameters.", _call)
    verb.add_argument("method", help="For example connectors/list; see `hfagent methods`.")
    verb.add_argument("params", nargs="?", help="A JSON object; - reads it from stdin.")
    verb.add_argument("--progress", action="store_true", help="Print progress as JSON lines on stderr.")
    verb = commands.verb("methods", "List the methods of the agent.", _methods)
    verb.add_argument("method", nargs="?", help="Show this one with its parameters.")


def _call(app: App, args: argparse.Namespace) -> int:
    text = sys.stdin.read() if args.params == "-" else args.params or "{}"
    try:
        params = json.loads(text)
    except ValueError as exc:
        raise UserError(
            f"the parameters are not valid JSON: {exc}", hint='for example: \'{"connector": "sales"}\''
        ) from exc
    if not isinstance(params, dict):
        raise UserError("the parameters must be a JSON object", hint='for example: \'{"connector": "sales"}\'')

    def show(value: dict[str, Any]) -> None:
        sys.stderr.write(json.dumps(value, ensure_ascii=False) + "\n")

    app.output.json(app.client.request(args.method, params, progress=show if args.progress else None))
    return 0


def _methods(app: App, args: argparse.Namespace) -> int:
    if args.method:
        method = METHODS.get(args.method)
        if method is None:
            raise UserError(
                f"there is no method {args.method!r}", code="request.unknown_method", hint="hfagent methods lists them"
            )
        schema = method.params.model_json_schema()
        if app.output.as_json:
            app.output.json(
                {
                    "name": method.name,
                    "access": method.access,
                    "params": schema,
                    "result": method.result.model_json_schema(),
                }
            )
            return 0
        app.output.line(f"{method.name}: {method.title}\n")
        if method.description:
            app.output.line(method.description + "\n")
        required = schema.get("required", ())
        rows = [
            (
                name,
                spec.get("type", "…"),
                "required" if name in required else spec.get("default", ""),
                spec.get("description", ""),
            )
            for name, spec in schema.get("properties", {}).items()
        ]
        app.output.table(("parameter", "type", "default", "description"), rows)
        return 0
    if app.output.as_json:
        app.output.json([{"name": m.name, "title": m.title, "access": m.access} for m in METHODS.values()])
    else:
        app.output.table(("method", "access", "what it does"), [(m.name, m.access, m.title) for m in METHODS.values()])
    return 0
