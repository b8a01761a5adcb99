"""X.509 certificates for an authority, a server and its devices: PEM in, PEM out, no files. Needs the extra `server`.

Elliptic-curve keys (P-256): every TLS stack knows them, and a handshake is quick on a small device. A server's certificate is good for
serving only and a device's for calling only, so neither can stand in for the other.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from streamsplit.errors import ConfigError

CA_DAYS = 3650
LEAF_DAYS = 825  # the longest that Apple's TLS accepts


class PemPair(NamedTuple):
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


def authority(name: str, now: datetime.datetime) -> PemPair:
    """A self-signed authority that may sign servers and devices, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        _builder(subject, subject, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pem(builder.sign(key, hashes.SHA256()), key)


def server(signed_by: PemPair, names: Sequence[str], now: datetime.datetime) -> PemPair:
    """A server's certificate for the host names and addresses it is called by.

    Raises:
        ConfigError: no name, or one that is neither a host name nor an address; or the authority's PEM is none.
    """
    if not names:
        raise ConfigError("server key: expected at least one host name or IP address, got none")
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    return _leaf(signed_by, names[0][:64], ExtendedKeyUsageOID.SERVER_AUTH, alternatives, now)


def device(signed_by: PemPair, name: str, now: datetime.datetime) -> PemPair:
    """A device's certificate: its common name is the device.

    Raises:
        ConfigError: the authority's PEM is none.
    """
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name)])
    return _leaf(signed_by, name, ExtendedKeyUsageOID.CLIENT_AUTH, alternatives, now)


def _leaf(
    signed_by: PemPair,
    common_name: str,
    purpose: x509.ObjectIdentifier,
    alternatives: x509.SubjectAlternativeName,
    now: datetime.datetime,
) -> PemPair:
    try:
        issuer = x509.load_pem_x509_certificate(signed_by.certificate)
        issuer_key = serialization.load_pem_private_key(signed_by.key, None)
    except (ValueError, TypeError) as error:
        raise ConfigError("authority: ca.pem or ca.key is not the PEM file it should be") from error
    if (
        not isinstance(issuer_key, ec.EllipticCurvePrivateKey)
        or issuer.public_key() != issuer_key.public_key()
    ):
        raise ConfigError("authority: ca.key is not the elliptic-curve key of ca.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(common_name), issuer.subject, key.public_key(), now, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    return _pem(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    # A day back: a device without a clock chip wakes up in the past.
    begin = now - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> PemPair:
    return PemPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        if not name.strip():
            raise ValueError(name)
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigError(
            f"server key: expected a host name (ASCII) or an IP address, got {name!r}"
        ) from error
