"""What a stack keeps on the disk: ports, process ids and secrets, in files that only their owner can read."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from segmill.errors import InputError
from segmill.files import write_atomically

RECORD = "stack.json"
PORTS = (
    "postgres", "s3", "mlflow", "prefect", "ray", "ray_client", "ray_head_agent", "ray_head_agent_grpc",
    "ray_node_agent", "ray_node_agent_grpc", "service",
)  # fmt: skip


@dataclass
class Place:
    """A stack's folder and what its record says.

    ``id`` is in the environment of every process of the stack. ``run`` is a folder with a short name, which a Unix
    socket's path has room for, and where PostgreSQL's own user may enter. ``processes``: per server its process id and
    when it was created, in seconds since 1970, since ids are used again. ``serves``: the workspace whose model is
    served; "" for none.
    """

    folder: Path
    id: str
    run: Path
    ports: dict[str, int]
    processes: dict[str, tuple[int, float]]
    serves: str = ""

    @classmethod
    def create(cls, folder: Path) -> Place:
        """Make the folder of a new stack, with ports that are free now; its record is the first file in it.

        Raises InputError where the folder is there and holds something.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is there and holds no stack's record", "remove it, or name another --folder")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        own_id = secrets.token_hex(8)
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        place = cls(folder, own_id, Path("/tmp") / f"segmill-stack-{own_id}", ports, {})
        place.save()
        place.make_folders()
        return place

    def make_folders(self) -> None:
        """Make the folders that are not there, as after a kill in the middle of ``create``."""
        for name in ("secrets", "logs", "home", "git"):
            (self.folder / name).mkdir(exist_ok=True)
        self.run.mkdir(exist_ok=True)
        self.run.chmod(0o711)
        (self.run / "tmp").mkdir(exist_ok=True)

    @classmethod
    def open(cls, folder: Path) -> Place | None:
        """Return the stack that ``folder`` holds; None where it holds none."""
        try:
            facts = json.loads((folder / RECORD).read_text())
        except FileNotFoundError:
            return None
        processes = {name: (pid, created) for name, (pid, created) in facts["processes"].items()}
        ports = facts["ports"]
        new = [name for name in PORTS if name not in ports]  # of a stack that an earlier release made
        ports |= dict(zip(new, _free_ports(len(new)), strict=True))
        return cls(folder, facts["id"], Path(facts["run"]), ports, processes, facts.get("serves", ""))

    def save(self) -> None:
        """Write the record."""
        facts = {**asdict(self), "folder": str(self.folder), "run": str(self.run)}
        write_atomically(self.folder / RECORD, json.dumps(facts, indent=1) + "\n")

    def secret(self, name: str) -> str:
        """Return a secret, which is made when it is first asked for: 32 random characters."""
        file = self.secret_file(name)
        if not file.exists() or not file.stat().st_size:  # empty after a kill at that moment
            self.keep(name, secrets.token_urlsafe(24))
        return file.read_text()

    def secret_file(self, name: str) -> Path:
        """Return where a secret is kept, for programs that read it from a file."""
        return self.folder / "secrets" / name

    def keep(self, name: str, content: str) -> Path:
        """Write a file with a secret, 0600 from its first byte, and return its path."""
        file = self.secret_file(name)
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(content)
        return file

    def log(self, server: str) -> Path:
        """Return where a server's output goes."""
        return self.folder / "logs" / f"{server}.log"

    def remove(self) -> None:
        """Delete everything that the stack wrote."""
        for folder in (self.run, self.folder):
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                raise InputError(f"{folder} could not be removed", "remove it by hand")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:  # all at once, else one would be given twice
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
