"""Run a command in a network namespace that was just made: 127.0.0.1 works in it, and there is nothing else.

unshare --net -- python -m autoeval.offline.loopback COMMAND …
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP: netdevice(7)


def bring_up(name: bytes = b"lo") -> None:
    """Raises ``OSError`` where that is not permitted."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        answer = fcntl.ioctl(some, _GET_FLAGS, struct.pack("16sH22x", name, 0))
        flags = struct.unpack("16sH22x", answer)[1]
        fcntl.ioctl(some, _SET_FLAGS, struct.pack("16sH22x", name, flags | _UP))


def main() -> None:
    bring_up()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
