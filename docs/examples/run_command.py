"""Run a command on each event: python docs/examples/run_command.py udp:127.0.0.1:8080 E_PIKE_BLOCKED COMMAND [WORD...]

The command finds the event as JSON on its standard input. What came from the network is in no command line: no shell
and no program takes it for an option.
"""

import contextlib
import json
import math
import subprocess
import sys

from harness.deadline import Deadline
from harness.opensips.subscriber import Here, listening

place, name, *command = sys.argv[1:]
with contextlib.suppress(KeyboardInterrupt), listening(place, Here("tcp", "127.0.0.1:0"), name) as reader:
    for event in reader.until(Deadline(math.inf)):
        params = event.params if isinstance(event.params, tuple) else dict(event.params)
        text = json.dumps({"event": event.name, "params": params, "received_at": event.received_at})
        try:
            code = subprocess.run(command, input=text, text=True, timeout=10, check=False).returncode
            said = f"exit code {code}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        if said != "exit code 0":
            print(f"{event}: {command[0]}: {said}", file=sys.stderr, flush=True)
