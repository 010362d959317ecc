"""Mooncake's transfer engine over TCP: mooncake_read.py FOLDER serve ADDRESS | read ADDRESS SIZES."""

import json
import pathlib
import sys
import time

import ctypes
from mooncake.engine import TransferEngine

ROOM = 256 << 20


def memory():
    room = (ctypes.c_char * ROOM)()
    ctypes.memset(room, 7, ROOM)
    return room


def main():
    folder, what, address = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    engine = TransferEngine()
    if engine.initialize(address, "P2PHANDSHAKE", "tcp", "") != 0:
        sys.exit("its engine does not start")
    room = memory()
    at = ctypes.addressof(room)
    if engine.register_memory(at, ROOM) != 0:
        sys.exit("it does not register memory")
    if what == "serve":
        (folder / "peer").write_text(json.dumps([f"{address}:{engine.get_rpc_port()}", at]))
        (folder / "ready").touch()
        time.sleep(3600)
    peer, there = json.loads((folder / "peer").read_text())
    found = {}
    for size, times in json.loads(sys.argv[4]).items():
        size, seconds = int(size), []
        for i in range(times + 3):
            begun = time.perf_counter()
            if engine.transfer_sync_read(peer, at, there, size) != 0:
                sys.exit(f"its read of {size} bytes fails")
            if i >= 3:
                seconds.append(time.perf_counter() - begun)
        found[size] = seconds
    if room[255] != b"\7":
        sys.exit("its bytes are wrong")
    print(json.dumps(found), flush=True)


main()
