"""Ray's command for a second node on loopback: `python -P ray_node.py start --address ...`.

Ray turns 127.0.0.1 into this machine's outward address and then listens on every interface. The head stays on loopback
with the switch that Ray has for macOS, which refuses second nodes; here that address is left as it is instead.
"""

from __future__ import annotations

import os

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def main() -> None:
    """Run Ray's command; the processes that it starts stay on loopback by the switch."""
    os.environ.pop(LOOPBACK_ONLY, None)
    from ray._private import services
    from ray.scripts import scripts

    services.resolve_ip_for_localhost = lambda host: host
    os.environ[LOOPBACK_ONLY] = "0"
    scripts.main()


if __name__ == "__main__":
    main()
