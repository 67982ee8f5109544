"""Post each event as JSON: python docs/examples/post_webhook.py udp:127.0.0.1:8080 http://HOST/PATH [EVENT...]"""

import contextlib
import json
import math
import sys
import urllib.error
import urllib.request

from harness.deadline import Deadline
from harness.opensips.subscriber import Here, listening

place, hook, *names = sys.argv[1:]
with contextlib.suppress(KeyboardInterrupt), listening(place, Here("tcp", "127.0.0.1:0"), *names) as reader:
    for event in reader.until(Deadline(math.inf)):
        params = event.params if isinstance(event.params, tuple) else dict(event.params)
        body = json.dumps({"event": event.name, "params": params, "received_at": event.received_at}).encode()
        request = urllib.request.Request(hook, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5):
                pass
        except (urllib.error.URLError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            print(f"{event} was not posted: {error}", file=sys.stderr, flush=True)
