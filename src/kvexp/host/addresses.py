"""Mask the secrets in addresses, such as that of a tracking store, wherever they are shown or written."""

import re
from collections.abc import Iterator
from urllib.parse import unquote_plus, urlsplit

MASK = "***"
# Up to a space or a quote, which may also stand before an @; a path made of an address has one slash.
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:/(?:\S*@)?[^\s\"'<>]*")
_SLASHES = re.compile(r":/{1,2}")
_PAIR = re.compile(r"([?&;]([^=&;]*)=)([^&;]*)")
_HARMLESS = {"timeout", "mode", "cache", "uri", "charset", "sslmode", "driver", "user", "host", "port"}
"""The keys of a query that say how to connect, but not with whose rights."""


def mask_secrets(text: str, *known: str) -> str:
    """Mask the secrets of every address in the text, see `mask_address`, and those of `known` everywhere.

    What is known are addresses and other secrets.
    """
    shown = _ADDRESS.sub(lambda match: mask_address(match[0]), text)
    secrets = {secret for one in known for secret in _list_secrets(one)}
    for secret in sorted(secrets, key=len, reverse=True):
        shown = shown.replace(secret, MASK)
    return shown


def mask_address(address: str) -> str:
    """Mask an address's password, a user without one, which may be a token, and most values of its query."""
    for before, secret in _find_secrets(address):
        address = address.replace(before + secret, before + MASK, 1)
    return address


def _list_secrets(known: str) -> list[str]:
    found = [secret for _, secret in _find_secrets(known)] if "://" in known else [known]
    return [form for secret in found for form in (secret, unquote_plus(secret)) if form]


def _find_secrets(address: str) -> Iterator[tuple[str, str]]:
    """Yield the secrets of the address, each after the text before it; a reference, ${name}, is none."""
    slashes = _SLASHES.search(address)
    if not slashes:
        return
    rest = address[slashes.end() :]
    head, at, tail = rest.rpartition("@")
    # As SQLAlchemy does, take a / after a colon for a part of the password.
    if at and ("/" not in head or ":" in head.partition("/")[0]):
        user, _, password = head.partition(":")
        if "${" not in head:
            before = slashes[0]
            yield (f"{before}{user}:", password) if user and password else (before, head)
        rest = tail
    try:
        query = urlsplit(f"//{rest}").query
    except ValueError:  # brackets that are none of an IPv6 address
        query = rest.partition("?")[2]
    for before, key, value in _PAIR.findall(f"?{query}"):
        if value and unquote_plus(key).lower() not in _HARMLESS and "${" not in value:
            yield before, value
