"""Hosts on one machine: network namespaces whose links have a delay and a bandwidth of one's choice.

    python -m benchmarks.namespaces --hosts 2 --delay 0.005 --bandwidth 50e6

Linux can delay packets by itself (`tc netem`) only where its kernel has that module. Here every
namespace has a tun device instead, and one process reads the packets of all of them, holds each
back, and writes it to the device of the host that it is for. The command prints what two hosts
measure of such a link. It needs root and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEVICE = "link0"
"""Name of the device in each namespace that leads to the others."""
_SUBNET = "10.213.8"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Link:
    """A host's connection to a switch that takes no time: what each host sends and gets.

    Attributes:
        delay: seconds on the way from one host to another.
        bandwidth: bits per second in each direction, headers included.
    """

    delay: float
    bandwidth: float


def require_root() -> None:
    """End the program with one line, and status 2, where namespaces cannot be made."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        print("error: network namespaces: root on Linux and iproute2's ip are needed", file=sys.stderr)
        sys.exit(2)
    # so that namespaces are removed as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def address(host: int) -> str:
    """Return the address of a host, counted from 0."""
    return f"{_SUBNET}.{host + 1}"


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Have this thread open its sockets and devices in a namespace; those stay there.

    Raises:
        OSError: there is no such namespace, or it may not be entered.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        with open(path) as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"{path}: {os.strerror(ctypes.get_errno())}")

    with open("/proc/thread-self/ns/net") as before:
        enter(f"/var/run/netns/{name}")
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")


@contextlib.contextmanager
def hosts(count: int, link: Link) -> Iterator[list[str]]:
    """Make namespaces that a switch joins; give their names. They are gone at the end.

    Raises:
        subprocess.CalledProcessError: iproute2 refused something.
    """
    names = [f"fabric_ppo_{os.getpid()}_{index}" for index in range(count)]
    forwarder: subprocess.Popen[str] | None = None
    try:
        for name in names:
            _ip("netns", "add", name)
        words = [sys.executable, "-m", "benchmarks.namespaces", "--forward", *names]
        words += ["--delay", repr(link.delay), "--bandwidth", repr(link.bandwidth)]
        # it ends when its standard input does, whatever becomes of this process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        forwarder = subprocess.Popen(words, cwd=ROOT, text=True, **pipes)
        assert forwarder.stdout is not None
        if not forwarder.stdout.readline():
            raise OSError("the process that forwards packets has ended")
        for index, name in enumerate(names):
            _ip("-n", name, "address", "add", f"{address(index)}/24", "dev", DEVICE)
            for device in (DEVICE, "lo"):
                _ip("-n", name, "link", "set", device, "up")
            # Linux's own choice; BBR, which some machines have, spreads packets over a round trip
            route = (f"{_SUBNET}.0/24", "dev", DEVICE, "src", address(index))
            _ip("-n", name, "route", "replace", *route, "congctl", "cubic")
        yield names
    finally:
        if forwarder is not None:
            forwarder.communicate()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def open_tun(name: str) -> int:
    """Make the device of a namespace; return the file that has its packets."""
    with inside(name):
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return file


class Switch:
    """Packets on their way between hosts.

    A packet leaves when the link of its sender is free, and arrives after the delay, or when the
    link of its receiver is free, if that is later. Nothing is lost.
    """

    def __init__(self, count: int, link: Link) -> None:
        """Join so many hosts by links that are alike."""
        self._link, self._sent = link, 0
        self._up_free, self._down_free = [0.0] * count, [0.0] * count
        self._queue: list[tuple[float, int, int, bytes]] = []

    def put(self, packet: bytes, sender: int, receiver: int, present: float) -> None:
        """Take a packet of a host at the time `present`, in seconds of any clock."""
        seconds = 8 * len(packet) / self._link.bandwidth
        self._up_free[sender] = max(present, self._up_free[sender]) + seconds
        arrival = max(self._up_free[sender] + self._link.delay, self._down_free[receiver] + seconds)
        self._down_free[receiver] = arrival
        self._sent += 1
        heapq.heappush(self._queue, (arrival, self._sent, receiver, packet))

    def arrived(self, present: float) -> Iterator[tuple[int, bytes]]:
        """Yield receivers and packets that have arrived by the time `present`."""
        while self._queue and self._queue[0][0] <= present:
            _, _, receiver, packet = heapq.heappop(self._queue)
            yield receiver, packet

    def next_arrival(self) -> float:
        """Return when the next packet arrives; infinite where none is on its way."""
        return self._queue[0][0] if self._queue else float("inf")


def forward(names: Sequence[str], link: Link) -> None:
    """Carry packets between namespaces until the standard input ends."""
    # a cable does not wait for a processor, whatever else the machine does
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    files = [open_tun(name) for name in names]
    receivers = {socket.inet_aton(address(index)): index for index in range(len(names))}
    switch, watched, clock = Switch(len(names), link), [*files, sys.stdin.fileno()], time.perf_counter
    print("ready", flush=True)
    while True:
        wait = min(max(switch.next_arrival() - clock(), 0.0), _IDLE_SECONDS)
        readable, _, _ = select.select(watched, [], [], wait)
        if sys.stdin.fileno() in readable:
            return
        for sender, file in enumerate(files):
            with contextlib.suppress(BlockingIOError):
                while file in readable:
                    packet = os.read(file, 65536)
                    # of IPv4 alone: the address that it is for is at byte 16
                    receiver = receivers.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                    if receiver is not None:
                        switch.put(packet, sender, receiver, clock())
        for receiver, packet in switch.arrived(clock()):
            with contextlib.suppress(OSError):  # the device is not up yet
                os.write(files[receiver], packet)


def measure_link(names: Sequence[str], pings: int = 50, megabytes: float = 1.0) -> Link:
    """Return what two hosts find a link to be: half of a byte's round trip, and payload per second.

    Args:
        names: of the namespaces; the first two are measured.
        pings: number of round trips, of which the median counts.
        megabytes: payload of the two bulk transfers, of which the second counts.
    """
    with inside(names[0]):
        listener = socket.create_server((address(0), 0))
    with inside(names[1]):
        client = socket.create_connection(listener.getsockname(), timeout=600)
    server, _ = listener.accept()
    size = int(1e6 * megabytes)
    echo = threading.Thread(target=_answer, args=(server, pings, size))
    echo.start()
    with listener, client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = [_seconds_until_answer(client, 1) for _ in range(pings)]
        delay = statistics.median(trips) / 2
        # the first one opens the window of the connection
        bulk = [_seconds_until_answer(client, size) for _ in range(2)][-1]
        echo.join()
    return Link(delay, 8 * size / max(bulk - 2 * delay, 1e-9))


def _answer(server: socket.socket, pings: int, size: int) -> None:
    """Answer each message with a byte: `pings` of one byte, and two of `size`."""
    with server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for expected in [1] * pings + [size] * 2:
            while expected:
                expected -= len(server.recv(min(expected, 65536)))
            server.sendall(b"x")


def _seconds_until_answer(client: socket.socket, size: int) -> float:
    """Return the time from the first of `size` bytes to the byte that answers them."""
    content = b"x" * size
    started = time.perf_counter()
    client.sendall(content)
    client.recv(1)
    return time.perf_counter() - started


def main() -> None:
    """Measure a link, or forward packets for a process that has made the namespaces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--delay", type=float, default=0.005, help="seconds from host to host (0.005)")
    parser.add_argument("--bandwidth", type=float, default=50e6, help="bits per second (50e6)")
    parser.add_argument("--forward", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    require_root()
    link = Link(given.delay, given.bandwidth)
    if given.forward:
        forward(given.forward, link)
        return
    with hosts(given.hosts, link) as names:
        found = measure_link(names)
    print(f"asked for {1e3 * link.delay:.2f} ms and {link.bandwidth / 1e6:.1f} Mbit/s")
    print(f"measured  {1e3 * found.delay:.2f} ms and {found.bandwidth / 1e6:.1f} Mbit/s of payload")


if __name__ == "__main__":
    main()
