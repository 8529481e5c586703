"""`hfagent vault …`."""

from __future__ import annotations

import argparse

from hfagent.cli.app import App, Commands
from hfagent.protocol import vault as v

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add `vault` and its verbs."""
    group = commands.group("vault", "The agent's sealed credentials.")
    group.verb("status", v.STATUS.title, _status)
    verb = group.verb("rotate", v.ROTATE.title, _rotate)
    verb.add_argument("--key-source", choices=("license", "systemd", "keyring", "file"), help="Move the key there.")
    group.verb("recovery-key", v.RECOVERY_KEY.title, _recovery_key)
    verb = group.verb("unlock", v.UNLOCK.title, _unlock)
    verb.add_argument("--key-source", choices=("keyring", "file"), default="file", help="Where the new key goes.")


def _show(app: App, status: v.VaultStatus) -> int:
    if app.output.as_json:
        app.output.json(status)
    else:
        app.output.pairs(
            [
                ("state", status.state),
                ("reason", status.reason),
                ("key source", status.key_source),
                ("key id", status.key_id),
                ("secrets", str(status.secrets)),
                ("under an older key", status.pending_rotation or None),
                ("unreadable", ", ".join(status.unreadable)),
                ("recovery key", "made" if status.recovery_key else "none: hfagent vault recovery-key makes one"),
            ]
        )
    return 0 if status.state != "locked" else 1


def _status(app: App, args: argparse.Namespace) -> int:
    return _show(app, app.call(v.STATUS, v.StatusParams()))


def _rotate(app: App, args: argparse.Namespace) -> int:
    return _show(app, app.call(v.ROTATE, v.RotateParams(key_source=args.key_source), spinner="re-encrypting"))


def _recovery_key(app: App, args: argparse.Namespace) -> int:
    made = app.call(v.RECOVERY_KEY, v.RecoveryKeyParams())
    if app.output.as_json:
        app.output.json(made)
    else:
        app.output.say("Keep this key off this machine. It is shown once; an earlier one no longer works.", "bold")
        app.output.line(made.recovery_key)
    return 0


def _unlock(app: App, args: argparse.Namespace) -> int:
    key = app.prompt_secret("recovery key")
    return _show(app, app.call(v.UNLOCK, v.UnlockParams(recovery_key=key, key_source=args.key_source)))
