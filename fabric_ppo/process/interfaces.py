"""The network interface that leads to another host, by its name: gloo and nccl do not look for it."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR of Linux
_NAME_BYTES, _ADDRESS_AT = 15, slice(20, 24)  # of a `struct ifreq`


def interface_towards(address: str) -> str:
    """Return the name of the interface that this host reaches another one through, such as `eth0`.

    Of an address of its own it is the interface that has it.

    Args:
        address: the other host's name or IPv4 address.

    Returns:
        An empty text where that is not known: the name is not, or leads to the loopback, as a host's
        own name does on some systems.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # chooses a route, and sends nothing
        own = probe.getsockname()[0]
        if own.startswith("127."):
            return ""
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                asked = struct.pack("256s", name.encode()[:_NAME_BYTES])
                answer = fcntl.ioctl(probe.fileno(), _ADDRESS_OF_INTERFACE, asked)
                if socket.inet_ntoa(answer[_ADDRESS_AT]) == own:
                    return name
    return ""
