"""All generated documents: where each belongs, and its text made anew from the declarations."""

from __future__ import annotations

from collections.abc import Callable

from hfagent.model.connector import ConnectorType
from hfagent.protocol.reference import connectors_document, errors_document, methods_document, settings_document
from hfagent.protocol.typescript import typescript
from hfagent.sdk.registry import Registry, describe
from hfagent.services.configuration import RESTART_NEEDED

GENERATED_FOLDER = "hfagent/docs/generated"


def own_types() -> tuple[ConnectorType, ...]:
    """The types that hfagent itself brings, described alike on every machine, whatever is installed there."""
    own = [cls for cls in Registry().all() if cls.__module__.startswith("hfagent.connectors.")]
    return tuple(
        describe(cls).model_copy(
            update={
                "install_hint": cls.driver.install_hint if cls.driver else None,
                "driver_installed": True,
                "driver_version": None,
            }
        )
        for cls in own
    )


DOCUMENTS: dict[str, Callable[[], str]] = {
    f"{GENERATED_FOLDER}/METHODS.md": methods_document,
    f"{GENERATED_FOLDER}/CONNECTORS.md": lambda: connectors_document(own_types()),
    f"{GENERATED_FOLDER}/SETTINGS.md": lambda: settings_document(restart_needed=RESTART_NEEDED),
    f"{GENERATED_FOLDER}/ERRORS.md": errors_document,
    "editors/protocol/protocol.ts": typescript,
}
"""Path → how its text is made."""
