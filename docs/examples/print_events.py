"""Print what an OpenSIPS tells: python docs/examples/print_events.py udp:127.0.0.1:8080 [EVENT...]"""

import contextlib
import math
import sys

from harness.deadline import Deadline
from harness.opensips.subscriber import Here, listening

place, *names = sys.argv[1:]
with contextlib.suppress(KeyboardInterrupt), listening(place, Here("tcp", "127.0.0.1:0"), *names) as reader:
    doubts = []
    for event in reader.until(Deadline(math.inf)):
        print(event, flush=True)
        if doubts != (doubts := reader.doubts()):
            print(*doubts, sep="\n", file=sys.stderr, flush=True)
