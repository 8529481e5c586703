"""Facts about pasted certificates, before a driver says something about "PEM routines".

No judgement of trust: that is the TLS handshake's. cryptography is imported when needed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from hfagent.foundation.clock import SYSTEM_CLOCK, Clock
from hfagent.foundation.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["EXPIRY_WARNING_DAYS", "check_certificate"]

EXPIRY_WARNING_DAYS: Final = 30
"""A certificate with fewer days left deserves a warning."""


def check_certificate(pem: str, *, what: str = "certificate", clock: Clock = SYSTEM_CLOCK) -> dict[str, Any]:
    """Parse PEM certificates; return `{subject, not_after, expires_in_days, count}` of the one that matters.

    That is the first of a chain, and the one valid longest of a bundle of authorities (old ones may stay in it). Raises
    `ConfigError`: `config.invalid` when there is none or it is not valid yet, `tls.expired` when it is out of date. The
    caller warns when `expires_in_days` is below `EXPIRY_WARNING_DAYS`. `what` names the field in messages.
    """
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(pem.encode("utf-8", "replace"))
    except ValueError as exc:
        raise ConfigError(
            f"the {what} is not a PEM certificate", hint="paste the text between and with the BEGIN and END lines"
        ) from exc
    chosen = certificates[0]
    if all(_is_authority(certificate) for certificate in certificates):
        chosen = max(certificates, key=lambda certificate: certificate.not_valid_after_utc)
    now = clock.now()
    if chosen.not_valid_after_utc < now:
        day = _day(chosen.not_valid_after_utc)
        raise ConfigError(f"the {what} expired on {day}", code="tls.expired", hint="replace it with a current one")
    if chosen.not_valid_before_utc > now:
        raise ConfigError(
            f"the {what} is not valid before {_day(chosen.not_valid_before_utc)}",
            hint="check the clock of the agent's machine",
        )
    return {
        "subject": chosen.subject.rfc4514_string(),
        "not_after": chosen.not_valid_after_utc.isoformat(),
        "expires_in_days": (chosen.not_valid_after_utc - now).days,
        "count": len(certificates),
    }


def _is_authority(certificate: Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):  # ValueError: an extension that cannot be parsed
        return False


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"
