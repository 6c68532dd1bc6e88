"""A process that plays `tesseractl exec`, `snapshot` and `cp`: it says what it was asked."""

import json
import sys
import time

verb, *words = sys.argv[1:]
if verb == "exec":
    command = words[words.index("--") + 1 :]
    if command[0] == "sleep":
        time.sleep(float(command[1]))
    if command[0] == "lost":
        print("tesseractl: the guest has no agent", file=sys.stderr)
        sys.exit(125)
    if command[0] == "fail":
        print("it failed", file=sys.stderr)
        sys.exit(3)
    print(" ".join(words))
    print(sys.stdin.read(), end="")
elif verb == "snapshot":
    if "full" in words[-1]:
        print("tesseractl: cannot save the VM: the disk is full; the VM runs again", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({"outcome": "saved", "bytes": 3, "words": words}))
elif "missing" in words[-2]:
    print("tesseractl: there is no such file", file=sys.stderr)
    sys.exit(1)
elif words[-1].startswith(":"):
    print(words)
else:
    with open(words[-1], "w") as file:
        file.write(" ".join(words[2:]))
