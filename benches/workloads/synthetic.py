"""The built-in `synthetic` as a Python function, for measurements of what starting a runtime costs.

Reads its inputs, sleeps, and puts noise, as its input `spec` says: `sleep_ms`, `seed` and `out`, a list of `port` and
`bytes`. Outputs that `out` does not name get the number of bytes that were read, and their checksum.
"""

import random
import time
import zlib

import dflow


def run(ctx: dflow.Context, spec, **inputs):
    """One task of a traced workflow."""
    read, checksum = 0, 0
    for name in sorted(inputs):
        read += len(inputs[name])
        checksum = zlib.crc32(inputs[name], checksum)
    time.sleep(spec.get("sleep_ms", 0) / 1000)
    noise = random.Random(spec.get("seed", 0))
    made = {output["port"]: noise.randbytes(output["bytes"]) for output in spec.get("out", [])}
    for name, data in made.items():
        ctx.put(name, data)
    if "sum" in ctx.outputs:
        ctx.put("sum", {"bytes": read, "sum": checksum})
