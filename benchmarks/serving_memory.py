"""Memory of the service's processes while it answers for half an hour.

    python benchmarks/serving_memory.py [--minutes 30] [--clients 8] [--size 192 160]

Clients ask `segmill serve` for masks, each again as soon as it has its answer. A line every five minutes says what its
processes take; the last one what each kind grew by after the first line, when everything was loaded and used.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from served_versions import PROCESSES, make_place, resident_mb, served
from serving_speed import Contestant, ask

EVERY_MINUTES = 5.0


async def measure(one: Contestant, clients: int, minutes: float) -> None:
    print(f"{'minute':>6} {'answers':>8} " + " ".join(f"{kind:>21}" for kind in PROCESSES), flush=True)
    passed, answers = 0.0, 0
    sizes: list[dict[str, float]] = []
    while passed < minutes:
        part = min(EVERY_MINUTES if sizes else 1.0, minutes - passed)
        answers += round((await ask(one, clients, 60 * part)).images_s * 60 * part)
        passed += part
        sizes.append(resident_mb())
        print(f"{passed:6.0f} {answers:8d} " + " ".join(f"{size:18,.0f} MB" for size in sizes[-1].values()), flush=True)
    grown = [f"{kind} {sizes[-1][kind] - sizes[0][kind]:+,.0f} MB" for kind in PROCESSES]
    print(f"since the first minute: {', '.join(grown)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[192, 160], metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-memory-") as name:
        folder = Path(name)
        place = make_place(folder, size_px=tuple(options.size), serving={"limits": {"per_minute": 10**6}})
        place.promote("1")
        with served(place, folder / "serve.log") as (url, headers):
            one = Contestant("segmill", f"{url}/v1/segment", headers, place.pngs, bytes)
            asyncio.run(measure(one, options.clients, options.minutes))


if __name__ == "__main__":
    main()
