"""Network namespaces with one interface each, whose packets come to us.

Law: nothing of this machine's own network is touched, and nothing has to be cleaned up: a namespace has no name and
lives as long as the process that holds it, which ends with the pipe to its starter. The interface is a TUN device: the
kernel of the namespace writes every packet to a descriptor, which we hand to the switch (``switch.py``). That takes
the place of bridge, firewall and ``tc netem``, which many kernels lack, and needs no root where user namespaces and
``/dev/net/tun`` are open to everybody.
Source: Linux ``Documentation/networking/tuntap.rst``, ``namespaces(7)``, ``netdevice(7)``.
"""

import array
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
NETMASK = "255.255.255.0"
TUN_PATH = "/dev/net/tun"

_TUNSETIFF = 0x4004_54CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_READY_SECONDS = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def leave_network() -> None:
    """This process moves to a network namespace of its own; without root to a user namespace, too."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _call("unshare", CLONE_NEWNET)
        return
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNET)
    for path, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{path}", "w") as file:
            file.write(text)


def enter_network(holder: int) -> None:
    """This process moves to the namespace of another one of ours. It must have one thread only."""
    kinds = (("net", CLONE_NEWNET),) if os.getuid() == 0 else (("user", CLONE_NEWUSER), ("net", CLONE_NEWNET))
    for kind, flag in kinds:
        descriptor = os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", descriptor, flag)
        finally:
            os.close(descriptor)


def _interface_up(probe: socket.socket, name: bytes) -> None:
    (flags,) = struct.unpack_from("<16xh", fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack("<16sh14x", name, 0)))
    fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("<16sh14x", name, flags | _IFF_UP | _IFF_RUNNING))


def open_tun(address: str) -> int:
    """Loopback and one TUN interface with this address come up; the descriptor of its packets."""
    descriptor = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
    name = b"tun0"
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("<16sh14x", name, _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for request, text in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, NETMASK)):
            place = struct.pack("<HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
            fcntl.ioctl(probe, request, struct.pack("<16s16s", name, place))
        _interface_up(probe, name)
        _interface_up(probe, b"lo")
    return descriptor


@dataclass(slots=True)
class Namespace:
    """A network namespace that a small process holds, and the packets of its interface."""

    address: str
    holder: "subprocess.Popen[bytes]"
    pipe: socket.socket
    packets: int

    @property
    def pid(self) -> int:
        """Of the process whose namespace others enter."""
        return self.holder.pid

    def close(self) -> None:
        """The holder ends; the kernel removes the namespace once nobody is left in it."""
        self.pipe.close()
        self.holder.wait()
        if self.packets >= 0:
            os.close(self.packets)
            self.packets = -1


def open_namespace(address: str) -> Namespace:
    """Start a holder and take its interface. Raises ``OSError`` with the kernel's reason."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.network.namespaces", str(theirs.fileno()), address],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
        )
    ours.settimeout(_READY_SECONDS)
    try:
        message, ancillary, _, _ = ours.recvmsg(1024, socket.CMSG_SPACE(4))
    except OSError:
        message, ancillary = b"", []
    if not ancillary:
        ours.close()
        holder.wait()
        raise OSError(f"no namespace with an interface: {message.decode() or 'its holder ended'}")
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2][: descriptors.itemsize])
    return Namespace(address, holder, ours, descriptors[0])


def why_unavailable() -> str | None:
    """Why this machine can't run networks of namespaces, or None if it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    try:
        open_namespace("10.77.0.1").close()
    except OSError as error:
        return str(error)
    return None


def _hold(arguments: Sequence[str]) -> None:
    """The holder's program: make the namespace, send its packets' descriptor, and wait for the end of the pipe."""
    pipe = socket.socket(fileno=int(arguments[0]))
    try:
        leave_network()
        descriptor = open_tun(arguments[1])
    except OSError as error:
        pipe.send(str(error).encode())
        return
    pipe.sendmsg([b"ready"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
    os.close(descriptor)
    pipe.recv(1)


if __name__ == "__main__":
    _hold(sys.argv[1:])
