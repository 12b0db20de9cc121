"""Open a push, as an app's notification service does: without any connection.

python examples/decrypt_push.py STATE_FILE < push.json
"""

import sys
from pathlib import Path

from ntf_client import CheckMessages, Device, Notifications, VerificationCode

device = Device.load(Path(sys.argv[1]))
match device.open_push(sys.stdin.read()):
    case VerificationCode():
        print("verification: give its code to Device.verify")
    case CheckMessages():
        print("check messages: connect to all servers and look")
    case Notifications(infos):
        for info in infos:
            meta = device.open_notification(info)
            print(info.server, f"message {meta.message_id.hex()} at {meta.timestamp}" if meta else "unknown queue")
