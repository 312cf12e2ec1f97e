"""Where the page may be reached, looked at before anything heavy is loaded."""

from __future__ import annotations

import ipaddress
import socket

from lora_mixer.errors import LoraMixerError


def check_reach(host: str, *, share: bool, auth: tuple[str, str] | None) -> None:
    """
    Refuse to be reached from other machines without a password.

    Raises:
        LoraMixerError: When ``auth`` is needed and missing.
    """
    if auth is not None:
        return
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if share or not local:
        what = "--share" if share else f"--host {host}"
        raise LoraMixerError(
            f"{what} lets other machines in: give --auth USER:PASSWORD as well (or leave it at --host 127.0.0.1)"
        )


def check_port(host: str, port: int | None) -> None:
    """
    Look whether a port is free, before a model is loaded for nothing.

    Raises:
        LoraMixerError: When something listens there already.
    """
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise LoraMixerError(
                f"port {port} of {host} cannot be had ({error.strerror}): end what uses it, or give another --port",
                argument="port",
            ) from error
