"""`hfagent connector …`: types, configured connectors, tests, streams."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.text import Text

from hfagent.cli.app import App, Commands
from hfagent.cli.forms import ask, config_parser, parse_config
from hfagent.cli.output import clean
from hfagent.cli.report import show_report
from hfagent.foundation.errors import ConfigError, UserError
from hfagent.model.connector import Connector, ConnectorPatch, ConnectorType
from hfagent.model.report import CheckReport
from hfagent.protocol import connectors as c

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add `connector` and its verbs."""
    group = commands.group("connector", "Configure, test and look into connectors.", aliases=("connectors",))

    verb = group.verb("catalog", c.CATALOG.title, _catalog)
    verb.add_argument("type", nargs="?", help="Show this type with its fields.")

    verb = group.verb("list", c.LIST.title, _list, aliases=("ls",))
    verb.add_argument("--type", help="Only this type.")
    verb.add_argument("--queryable", action="store_true", help="Only what can be queried.")

    verb = group.verb("show", c.GET.title, _show, aliases=("get",))
    _name(verb)

    verb = group.verb(
        "add", c.CREATE.title, _add, aliases=("create",), open_options=True,
        epilog="The type's own options: hfagent connector add TYPE --help. Without them the fields are asked for.",
    )  # fmt: skip
    verb.add_argument("type", help="Connector type: see `hfagent connector catalog`.")
    verb.add_argument("--name", help="Name of the connector (default: asked for).")
    verb.add_argument("--description", default="", help="What it is for.")
    verb.add_argument(
        "--schema",
        action="append",
        default=[],
        metavar="NAME",
        help="Schema to discover and read (output_schemas). Repeatable.",
    )
    verb.add_argument("--production", action="store_true", help="Clients ask before anything unusual.")
    verb.add_argument("--schedule", metavar="CRON", help="Attach a schedule (connectors/bootstrap).")
    verb.add_argument(
        "--schedule-mode",
        choices=("incremental", "full"),
        default="incremental",
        help="Changed rows only (default), or all.",
    )
    verb.add_argument("--config-file", metavar="PATH", help="Read the fields from a JSON or TOML file; - is stdin.")
    verb.add_argument("--no-test", action="store_true", help="Save without testing.")
    verb.add_argument("--advanced", action="store_true", help="Ask for advanced fields too.")

    verb = group.verb(
        "edit", c.UPDATE.title, _edit, aliases=("update",), open_options=True,
        epilog="The type's own options change fields; --unset FIELD clears one.",
    )  # fmt: skip
    _name(verb)
    verb.add_argument("--rename", metavar="NAME", help="New name.")
    verb.add_argument("--description", help="New description.")
    verb.add_argument("--schema", action="append", metavar="NAME", help="Replace output_schemas. Repeatable.")
    verb.add_argument("--unset", action="append", default=[], metavar="FIELD", help="Clear a field. Repeatable.")
    verb.add_argument(
        "--production", action=argparse.BooleanOptionalAction, help="Clients ask before anything unusual."
    )
    verb.add_argument("--schedule", metavar="CRON", help="Attach or change the schedule.")
    verb.add_argument("--schedule-mode", choices=("incremental", "full"), help="Changed rows only, or all.")

    for word, status in (("enable", "active"), ("disable", "disabled")):
        verb = group.verb(word, f"{word.capitalize()} a connector.", _status)
        verb.set_defaults(status=status)
        _name(verb)

    verb = group.verb("delete", c.DELETE.title, _delete, aliases=("rm",))
    _name(verb)
    verb.add_argument("--yes", action="store_true", help="Do not ask.")

    verb = group.verb(
        "test", c.TEST.title, _test, open_options=True,
        epilog="With --type and the type's own options, a configuration that is not stored is tested.",
    )  # fmt: skip
    verb.add_argument("connector", nargs="?", help="Id or name.")
    verb.add_argument("--type", help="Test a configuration of this type that is not stored.")
    verb.add_argument(
        "--mode",
        choices=("quick", "standard", "deep"),
        default="standard",
        help="How far the test goes (default standard).",
    )

    verb = group.verb("history", c.TEST_HISTORY.title, _history)
    _name(verb)
    verb.add_argument("--limit", type=int, default=20, help="Results to show (default 20).")

    verb = group.verb("models", c.MODELS.title, _models, aliases=("streams",))
    _name(verb)
    verb.add_argument("stream", nargs="?", help="Show this stream with its columns.")
    verb.add_argument("--refresh", action="store_true", help="Ask the source again.")
    verb.add_argument("--search", metavar="TEXT", help="Only streams whose name contains this.")
    verb.add_argument("--schema", action="append", default=[], metavar="NAME", help="Only this schema. Repeatable.")
    verb.add_argument("--limit", type=int, default=200, help="Streams to show (default 200; 0 = all).")

    verb = group.verb(
        "rotate", c.ROTATE.title, _rotate, open_options=True, epilog="Give the new secrets with the type's own options."
    )
    _name(verb)
    verb.add_argument("--reason", default="", help="Kept in the audit log.")
    verb.add_argument("--force", action="store_true", help="Save even if the test fails.")

    verb = group.verb("pools", c.POOL_STATS.title, _pools)
    verb.add_argument("connector", nargs="?", help="Id or name.")

    verb = group.verb("apply", c.APPLY.title, _apply)
    verb.add_argument("-f", "--file", required=True, metavar="PATH", help="Connectors-as-code file (TOML).")
    verb.add_argument("--prune", action="store_true", help="Remove connectors that came from a file and are not in it.")
    verb.add_argument("--dry-run", action="store_true", help="Only show what would change.")


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("connector", help="Id or name.")


# --- types ---


def _catalog(app: App, args: argparse.Namespace) -> int:
    types = app.call(c.CATALOG, c.CatalogParams(type=args.type)).types
    if app.output.as_json:
        app.output.json(types)
    elif args.type:
        _describe_type(app, types[0])
    else:
        rows = [
            (
                app.output.mark("ok" if t.driver_installed else "skipped"),
                t.type,
                t.title,
                t.category,
                "yes" if t.is_queryable else "",
                ", ".join(t.aliases),
                t.install_hint or "",
            )
            for t in types
        ]
        app.output.table(("", "type", "title", "category", "queryable", "aliases", "to install the driver"), rows)
    return 0


def _describe_type(app: App, entry: ConnectorType) -> None:
    app.output.pairs(
        [
            ("type", entry.type),
            ("title", entry.title),
            ("", entry.description),
            ("aliases", ", ".join(entry.aliases)),
            ("can", ", ".join(entry.capabilities)),
            ("driver", f"{entry.driver} {entry.driver_version or '(not installed)'}" if entry.driver else "built in"),
            ("install", entry.install_hint),
        ]
    )
    app.output.line()
    required = set(entry.config_schema.get("required", ()))
    rows = []
    for name, spec in entry.config_schema["properties"].items():
        marks = [word for word, on in (("required", name in required), ("secret", spec.get("x-secret"))) if on]
        kind = "|".join(map(str, spec["enum"])) if spec.get("enum") else spec.get("type", "")
        default = spec.get("default")
        rows.append(
            (name, kind, "" if default in (None, [], {}) else default, " ".join(marks), spec.get("description", ""))
        )
    app.output.table(("field", "type", "default", "", "description"), rows)


# --- configured connectors ---


def _list(app: App, args: argparse.Namespace) -> int:
    found = app.call(c.LIST, c.ListParams(type=args.type, queryable=True if args.queryable else None)).connectors
    if app.output.as_json:
        app.output.json(found)
    elif not found:
        app.output.say("no connectors yet; add one with: hfagent connector add TYPE")
    else:
        rows = [(_health(app, x), x.name, x.type, _where(x), x.last_tested_at or "never tested", x.id) for x in found]
        app.output.table(("", "name", "type", "where", "last test", "id"), rows)
    return 0


def _show(app: App, args: argparse.Namespace) -> int:
    found = app.call(c.GET, c.GetParams(connector=args.connector))
    if app.output.as_json:
        app.output.json(found)
        return 0
    app.output.pairs(
        [
            ("name", found.name),
            ("type", found.type),
            ("description", found.description),
            ("status", found.status + (f": {found.status_reason}" if found.status_reason else "")),
            ("production", "yes" if found.production else ""),
            ("schemas", ", ".join(found.output_schemas) or "the owned ones"),
            ("schedule", f"{found.schedule_cron} ({found.schedule_mode})" if found.schedule_cron else ""),
            ("last test", _last_test(app, found)),
            ("changed", found.updated_at),
            ("id", found.id),
        ]
    )
    app.output.line()
    app.output.table(("field", "value"), [(name, _shown_value(value)) for name, value in found.config.items()])
    return 0


def _add(app: App, args: argparse.Namespace) -> int:
    entry = _type(app, args.type)
    if _wants_help(app, args, entry):
        return 0
    config = _config_file(args.config_file) if args.config_file else {}
    config |= parse_config(entry.config_schema, args.rest, prog=f"hfagent connector add {entry.type}")
    name = args.name
    if app.output.interactive:
        app.output.say(f"New {entry.title} connector. Enter takes the value in brackets.", "bold")
        if name is None:
            name = app.prompt("name")
        config = ask(entry.config_schema, config, app.output, advanced=args.advanced)
    if name is None:
        raise ConfigError("the connector needs a name", code="config.missing_field", field="name", hint="give --name")
    if not args.no_test:
        schemas = tuple(args.schema) or None
        report = _run_test(app, c.TestParams(type=entry.type, config=config, output_schemas=schemas))
        if not app.output.as_json:
            show_report(app.output, report)
        if not report.ok and not (app.output.interactive and app.confirm("The test failed. Save it nevertheless?")):
            if app.output.as_json:
                app.output.json(report)
            else:
                app.output.say("Nothing was saved. --no-test saves without testing.", "yellow")
            return 1
    fields: dict[str, Any] = {
        "name": name, "type": entry.type, "config": config, "description": args.description,
        "output_schemas": tuple(args.schema), "production": args.production,
    }  # fmt: skip
    if args.schedule:
        created = app.call(
            c.BOOTSTRAP, c.BootstrapParams(**fields, schedule_cron=args.schedule, schedule_mode=args.schedule_mode)
        )
    else:
        created = app.call(c.CREATE, c.CreateParams(**fields))
    if app.output.as_json:
        app.output.json(created)
    else:
        app.output.say(f"Saved {created.name!r} ({created.id}).", "green")
        if created.is_queryable:
            app.output.say(f"Look into it: hfagent connector models {created.name!r}")
    return 0


def _edit(app: App, args: argparse.Namespace) -> int:
    present = app.call(c.GET, c.GetParams(connector=args.connector))
    entry = _type(app, present.type)
    if _wants_help(app, args, entry):
        return 0
    config = parse_config(entry.config_schema, args.rest, prog="hfagent connector edit NAME")
    config |= dict.fromkeys(args.unset)
    changes = {
        "name": args.rename, "description": args.description, "config": config or None, "production": args.production,
        "output_schemas": tuple(args.schema) if args.schema is not None else None, "schedule_cron": args.schedule,
        "schedule_mode": args.schedule_mode,
    }  # fmt: skip
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        raise UserError("nothing to change", hint="hfagent connector edit NAME --help lists the options")
    changed = app.call(
        c.UPDATE, c.UpdateParams(connector=present.id, changes=ConnectorPatch(**given, if_version=present.version))
    )
    app.done(changed, f"Changed {changed.name!r}.")
    return 0


def _status(app: App, args: argparse.Namespace) -> int:
    changed = app.call(c.UPDATE, c.UpdateParams(connector=args.connector, changes=ConnectorPatch(status=args.status)))
    app.done(changed, f"{changed.name!r} is {changed.status}.")
    return 0


def _delete(app: App, args: argparse.Namespace) -> int:
    present = app.call(c.GET, c.GetParams(connector=args.connector))
    if not args.yes:
        if not app.output.interactive:
            raise UserError("deleting needs a confirmation", hint="add --yes")
        if not app.confirm(f"Delete {present.name!r} with its secrets, test history and cached streams?"):
            return 1
    done = app.call(c.DELETE, c.DeleteParams(connector=present.id))
    app.done(done, f"Deleted {present.name!r}.")
    return 0


# --- tests ---


def _test(app: App, args: argparse.Namespace) -> int:
    if args.connector is None and args.type is None:
        raise UserError("which connector?", hint="hfagent connector test NAME, or --type TYPE with its options")
    config: dict[str, Any] | None = None
    type_name = args.type
    if args.rest or args.connector is None:
        type_name = type_name or app.call(c.GET, c.GetParams(connector=args.connector)).type
        entry = _type(app, type_name)
        if _wants_help(app, args, entry):
            return 0
        config = parse_config(entry.config_schema, args.rest, prog="hfagent connector test")
        if args.connector is None and app.output.interactive:
            config = ask(entry.config_schema, config, app.output)
    report = _run_test(app, c.TestParams(connector=args.connector, type=type_name, config=config, mode=args.mode))
    if app.output.as_json:
        app.output.json(report)
    else:
        show_report(app.output, report)
    return 0 if report.ok else 1


def _run_test(app: App, params: c.TestParams) -> CheckReport:
    """Test with live stages on a terminal."""
    return app.call(c.TEST, params, spinner="testing")


def _history(app: App, args: argparse.Namespace) -> int:
    tests = app.call(c.TEST_HISTORY, c.TestHistoryParams(connector=args.connector, limit=args.limit)).tests
    if app.output.as_json:
        app.output.json(tests)
        return 0
    rows = [
        (
            app.output.mark("ok" if t.ok else "failed"), t.tested_at, t.mode, f"{t.latency_ms:.0f} ms",
            f"{t.error.stage}: {t.error.message}" if t.error else "; ".join(t.warnings),
        )
        for t in tests
    ]  # fmt: skip
    app.output.table(("", "at", "mode", ">latency", "result"), rows)
    return 0


# --- streams ---


def _models(app: App, args: argparse.Namespace) -> int:
    params = c.ModelsParams(
        connector=args.connector, refresh=args.refresh, search=args.search, schemas=tuple(args.schema),
        stream=args.stream, page_size=500 if not args.limit else min(args.limit, 500),
    )  # fmt: skip
    page = app.call(c.MODELS, params, spinner="discovering")
    streams = list(page.streams)
    while page.next_page and (not args.limit or len(streams) < args.limit):
        page = app.call(c.MODELS, params.model_copy(update={"page_token": page.next_page, "refresh": False}))
        streams += page.streams
    streams = streams[: args.limit or None]
    if app.output.as_json:
        app.output.json(streams)
        return 0
    if args.stream and streams:
        _describe_stream(app, streams[0])
        return 0
    rows = [
        (s.namespace or "", s.name, s.kind, len(s.columns), "" if s.row_estimate is None else f"{s.row_estimate:,}",
         ", ".join(s.primary_key), "" if s.readable != "no" else "not readable", s.description or "")
        for s in streams
    ]  # fmt: skip
    app.output.table(("schema", "name", "kind", ">columns", ">rows (est.)", "key", "", "description"), rows)
    for warning in page.warnings:
        app.output.say(warning, "yellow")
    if page.total is not None and page.total > len(streams):
        app.output.say(f"{len(streams)} of {page.total} shown; --limit 0 shows all, --search narrows.", "bright_black")
    return 0


def _describe_stream(app: App, stream: Any) -> None:
    app.output.pairs(
        [
            ("stream", stream.id),
            ("kind", stream.kind),
            ("description", stream.description),
            ("rows (estimate)", stream.row_estimate),
            ("primary key", ", ".join(stream.primary_key)),
            (
                "references",
                "; ".join(
                    f"{', '.join(f.columns)} → {f.references_name} ({', '.join(f.references_columns)})"
                    for f in stream.foreign_keys
                ),
            ),
            ("watermarks", ", ".join(f"{w.column} ({w.score:.2f})" for w in stream.watermark_candidates)),
            ("warnings", "; ".join(stream.warnings)),
        ]
    )
    app.output.line()
    rows = [
        (x.name, str(x.type), x.native_type, "" if x.nullable else "not null", x.description or "")
        for x in stream.columns
    ]
    app.output.table(("column", "type", "native", "", "description"), rows)


# --- secrets, pools, code ---


def _rotate(app: App, args: argparse.Namespace) -> int:
    present = app.call(c.GET, c.GetParams(connector=args.connector))
    entry = _type(app, present.type)
    if _wants_help(app, args, entry):
        return 0
    config = parse_config(entry.config_schema, args.rest, prog="hfagent connector rotate NAME")
    if not config and app.output.interactive:
        for field in entry.secret_fields:
            if field in present.config and (value := app.prompt_secret(f"new {field} (Enter keeps it)")):
                config[field] = value
    if not config:
        raise UserError("no new secret was given", hint="use --<field>-stdin, --<field>-file or --<field>-env")
    result = app.call(
        c.ROTATE,
        c.RotateParams(connector=present.id, config=config, reason=args.reason, force_save=args.force),
        spinner="testing",
    )
    if app.output.as_json:
        app.output.json(result)
    else:
        show_report(app.output, result.test)
        app.output.say(
            "Rotated." if result.rotated else "Nothing was changed.", "green" if result.rotated else "yellow"
        )
    return 0 if result.rotated else 1


def _pools(app: App, args: argparse.Namespace) -> int:
    pools = app.call(c.POOL_STATS, c.PoolStatsParams(connector=args.connector)).pools
    if app.output.as_json:
        app.output.json(pools)
        return 0
    rows = [
        (
            p.name,
            p.open,
            p.idle,
            p.busy,
            p.waiting,
            f"{p.size}+{p.max_overflow}",
            p.opened,
            p.recycled,
            p.discarded,
            p.timeouts,
            p.errors,
        )
        for p in pools
    ]
    app.output.table(
        (
            "connector",
            ">open",
            ">idle",
            ">busy",
            ">waiting",
            ">limit",
            ">opened",
            ">recycled",
            ">discarded",
            ">timeouts",
            ">errors",
        ),
        rows,
    )
    return 0


def _apply(app: App, args: argparse.Namespace) -> int:
    entries = _config_file(args.file).get("connectors")
    if not isinstance(entries, list):
        raise ConfigError(
            f"{args.file}: expected [[connectors]] entries", hint="each has name, type and [connectors.config]"
        )
    result = app.call(
        c.APPLY,
        c.ApplyParams(
            connectors=tuple(entries), prune=args.prune, dry_run=args.dry_run, source=str(Path(args.file).resolve())
        ),
    )
    if app.output.as_json:
        app.output.json(result)
    else:
        for change in result.changes:
            mark = app.output.mark({"failed": "failed", "unchanged": "skipped"}.get(change.action, "ok"))
            app.output.out.print(
                Text.assemble(mark, " ", clean(change.name), f": {change.action} ", clean(change.message or ""))
            )
        if args.dry_run:
            app.output.say("Nothing was changed (--dry-run).", "bright_black")
    return 1 if any(change.action == "failed" for change in result.changes) else 0


# --- shared ---


def _type(app: App, name: str) -> ConnectorType:
    return app.call(c.CATALOG, c.CatalogParams(type=name)).types[0]


def _wants_help(app: App, args: argparse.Namespace, entry: ConnectorType) -> bool:
    """`--help` after a type shows the type's own options."""
    if not {"-h", "--help"} & set(args.rest):
        return False
    args.parser.print_help()
    app.output.line(f"\n{entry.title}\n")
    app.output.line(config_parser(entry.config_schema, prog=args.parser.prog).format_help().split("\n\n", 1)[-1])
    return True


def _config_file(path: str) -> dict[str, Any]:
    import json
    import sys
    import tomllib

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        loaded = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected an object")
    return loaded


def _where(connector: Connector) -> str:
    config = connector.config
    host = config.get("host") or config.get("unix_socket")
    if host:
        port = f":{config['port']}" if config.get("port") else ""
        return f"{host}{port}/{config.get('database', '')}".rstrip("/")
    return str(config.get("path") or config.get("base_url") or config.get("bucket") or "")


def _health(app: App, connector: Connector) -> Text:
    if connector.status != "active":
        return app.output.mark("warning")
    return app.output.mark({True: "ok", False: "failed", None: "skipped"}[connector.last_test_ok])


def _last_test(app: App, connector: Connector) -> Text | str:
    if connector.last_test_ok is None:
        return "never"
    return Text.assemble(app.output.mark("ok" if connector.last_test_ok else "failed"), f" {connector.last_tested_at}")


def _shown_value(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"$ref"}:
        return f"→ {value['$ref']}"
    return clean(value)
