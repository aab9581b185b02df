"""TLS for the TCP listener, from certificate files."""

from __future__ import annotations

import ssl

from app.model.errors import StartupError


def server_context(certificate: str, key: str, client_ca: str = "") -> ssl.SSLContext:
    """TLS 1.2 or newer; with `client_ca`, a client needs a certificate that it signed. Raises StartupError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # a key with a passphrase is refused: there is nobody to ask
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as refusal:
        raise StartupError(f"--tls-cert {certificate} with --tls-key {key} cannot be used: {refusal}") from None
    if client_ca:
        try:
            context.load_verify_locations(client_ca)
        except OSError as refusal:
            raise StartupError(f"--tls-client-ca {client_ca} cannot be used: {refusal}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted; the daemon takes one without a passphrase")
