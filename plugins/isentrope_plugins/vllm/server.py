"""`Server`: one vLLM server of ours, in processes of its own."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import field, frozen, validators

from isentrope import ConfigError, EngineError, LanguageModel, Run
from isentrope.validation import one_of, whole
from isentrope_plugins.vllm.place import Place, count_gpus

HOST = "127.0.0.1"
"""Who reaches a server can load weights into it, and more: it is for this machine's users alone."""
NAME = "base"
"""What requests call the model without an adapter."""
DTYPES = ("float32", "bfloat16", "float16")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks of adapters that vLLM can be prepared for."""
GRACE = 10.0
"""Seconds that a server has to end by itself."""
LINES, WIDTH = 6, 400
"""Of a log, in an error."""
TORCHRUN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
"""Variables of a run under torchrun, which a server would take for its own."""
_ERROR = re.compile(r"(?:[\w.]*\.)?\w*(?:Error|Exception|Exit|Interrupt)\b(?:: .*)?|.*: error: .*")
_PREFIX = re.compile(
    r"^(?:\([^)]*\) )?(?:(?:INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[\S+\] ?)?"
)
_ECHO = re.compile(r"[Ss]ee (?:root cause|stack trace)")
_KEEPER = Path(__file__).with_name("keeper.py")


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen(kw_only=True)
class ServerOptions:
    """What a server serves, and how."""

    model: str = field(converter=str)
    """A folder in transformers' format, a run's, which stands for its policy, or a hub's name."""
    dtype: str = field(default="float32", validator=one_of(DTYPES))
    """What it computes in: the learner's, or the difference is in every ratio."""
    context: int | None = field(default=None, validator=validators.optional(whole(1)))
    """Longest sequence, in tokens; None: what the model allows."""
    max_loras: int = field(default=2, validator=whole(0))
    """Adapters in use at the same time; requests of one more wait. 0: no adapters."""
    max_lora_rank: int = field(default=16, validator=whole(1))
    """Largest rank of an adapter; vLLM is prepared for the next that it knows."""
    port: int = field(default=0, validator=whole(0))
    """0: a free one."""
    gpus: tuple[str, ...] = field(default=(), converter=_strings)
    """Which it sees, as CUDA_VISIBLE_DEVICES names them; none: those that the run sees."""
    flags: tuple[str, ...] = field(default=(), converter=_strings)
    """More flags of ``vllm serve``; they win over ours."""

    def command(self, model: str, port: int, device: str) -> list[str]:
        """Return the arguments of ``vllm serve``; `model` is where it is, `device` cpu or gpu."""
        flags = {
            "host": HOST,
            "port": port,
            "served-model-name": NAME,
            "dtype": self.dtype,
            "generation-config": "vllm",  # else the model's own changes what requests leave out
            "logprobs-mode": "processed_logprobs",  # those that were sampled from
        }
        if self.context is not None:
            flags["max-model-len"] = self.context
        if self.max_loras:
            flags["max-loras"] = self.max_loras
            flags["max-cpu-loras"] = 2 * self.max_loras
            flags["max-lora-rank"] = _rank(self.max_lora_rank)
        switches = ["enable-prefix-caching", "enable-prompt-tokens-details"]
        switches += ["enable-lora"] * bool(self.max_loras)
        switches += ["enforce-eager"] * (
            device == "cpu"
        )  # compiling costs more than it gives there
        switches += ["disable-uvicorn-access-log"]  # a line for every request
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return ["serve", model, *words, *(f"--{name}" for name in switches), *self.flags]

    def environment(self, device: str, local: bool) -> dict[str, str]:
        """Return the variables of the server's process; `local`: the model needs no download."""
        dropped = {*TORCHRUN, "PYTHONPATH", "PYTHONHOME"}  # it has an interpreter of its own
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        ours = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # sleep, pause, the prefix cache's reset
            "VLLM_NO_USAGE_STATS": "1",
        }
        if local:
            ours["HF_HUB_OFFLINE"] = "1"
        if self.gpus:
            ours["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        defaults = {}
        if device == "cpu":
            # Else every server binds itself to the same cores, with a thread for each.
            defaults = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
            defaults |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1"}
        return {**defaults, **kept, **ours}


class Server:
    """A vLLM server that was started here, and ends with this process at the latest.

    `start` returns at once, and `wait_ready` waits, so that several can start side by side. Its
    methods block; each may be called in any thread.
    """

    def __init__(
        self,
        options: ServerOptions,
        process: subprocess.Popen[bytes],
        held: socket.socket,
        log: Path,
    ) -> None:
        self.options, self.log = options, log
        self.url = f"http://{HOST}:{held.getsockname()[1]}"
        self._process, self._held = process, held
        self._fine = False  # until it is asked to end: nothing has gone wrong
        self._late = False

    @classmethod
    def start(cls, options: ServerOptions, place: Place | None = None) -> Server:
        """Start a server; `place` is the installation to use, by default the default one.

        Raises `ConfigError` where vLLM is not installed, the port is taken or there is no model.
        """
        place = place or Place.default()
        device = place.device
        if device is None:
            raise ConfigError(
                f"vLLM is not installed in {place.root}; to install it: isentrope vllm install. "
                f"{Place.variable} names another folder."
            )
        model, local = find_model(options.model)
        held = _hold(options.port)
        arguments = options.command(model, held.getsockname()[1], device)
        served = [str(place.python), "-I", "-m", "vllm.entrypoints.cli.main", *arguments]
        handle, log = tempfile.mkstemp(prefix="isentrope-vllm-", suffix=".log")
        with open(handle, "wb") as file:
            process = subprocess.Popen(  # noqa: S603  # our own program
                [sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid()), str(GRACE), *served],
                env=options.environment(device, local),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run, which then stops it
            )
        return cls(options, process, held, Path(log))

    @property
    def alive(self) -> bool:
        """Whether its processes are there; they may still be starting, or hang."""
        return self._process.poll() is None

    def healthy(self, seconds: float = 5.0) -> bool:
        """Say whether it answers within `seconds` that all is well."""
        port = int(self.url.rpartition(":")[2])
        connection = http.client.HTTPConnection(HOST, port, timeout=seconds)  # without any proxy
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self, seconds: float = 1800.0) -> None:
        """Wait until it answers requests.

        Raises `EngineError` where it ends before, or `seconds` have passed.
        """
        end = time.monotonic() + seconds
        while self.alive:
            if self.healthy():
                self._held.close()
                return
            if time.monotonic() > end:
                self._late = True
                raise EngineError(
                    f"vLLM's server of {self.options.model} is not ready after {seconds:.0f} s; "
                    f"its log, {self.log}, ends with:\n{self.tail()}"
                )
            time.sleep(0.2)
        raise EngineError(self.obituary())

    def obituary(self) -> str:
        """Say how it ended, with its log's last words: for a server that is not alive."""
        status = self._process.wait()
        number = -status if status < 0 else status - 128  # its keeper's, or its own
        how = f"signal {number}" if number > 0 else f"exit status {status}"
        return (
            f"vLLM's server of {self.options.model} at {self.url} ended with {how}; from its log, "
            f"{self.log}:\n{self.tail()}"
        )

    def tail(self) -> str:
        """Return the lines of its log that tell most: its errors, else the last ones."""
        return "\n".join(f"  {line}" for line in telling(self.log))

    def ask_to_stop(self) -> None:
        """Have it end, without waiting for that, so that several can end side by side."""
        self._fine = self._fine or (self.alive and not self._late)
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended already
            self._process.stdin.write(b"stop")
            self._process.stdin.flush()

    def stop(self) -> None:
        """End all of it, and wait for that; its log stays only where something went wrong."""
        self.ask_to_stop()
        self._process.communicate()
        self._held.close()
        if self._fine:
            self.log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def telling(log: Path) -> list[str]:
    """Return the lines of a log that tell most: its last errors, else its last lines.

    Each of vLLM's processes logs what it was told of another's error; those lines say no more.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [_PREFIX.sub("", line).rstrip()[:WIDTH] for line in text.splitlines()]
    errors = [
        # pydantic's reason is on the line below
        f"{line}: {after.strip()}" if line.startswith("pydantic") else line
        for line, after in zip_longest(lines, lines[1:], fillvalue="")
        if _ERROR.fullmatch(line)
    ]
    causes = [line for line in errors if not _ECHO.search(line)] or errors
    last = list(dict.fromkeys(reversed(causes)))[:LINES][::-1]
    return last or [line for line in lines if line][-LINES:] or ["(nothing)"]


def find_model(model: str) -> tuple[str, bool]:
    """Return what vLLM is to load, and whether it is a folder here.

    Raises `ConfigError` where there is no such model.
    """
    folder = Path(model).expanduser().absolute()
    if (folder / "config.toml").is_file():
        folder = Run(folder).policy
    if (folder / "config.json").is_file():
        return str(folder), True
    if folder.exists() or folder.name == "policy":
        raise ConfigError(f"{folder} holds no model: it has no config.json.")
    LanguageModel.check_path(model)
    from transformers.utils.hub import cached_file

    try:
        cached_file(model, "config.json")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Model {model!r} is no folder, and no hub's: {reason}") from error
    return model, False


def share_gpus(servers: int) -> list[tuple[str, ...]]:
    """Deal the GPUs that this process sees to some servers, as many to each.

    Raises `ConfigError` where there are fewer than servers.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        seen = [str(i) for i in range(count_gpus())]
    else:
        seen = [name.strip() for name in named.split(",") if name.strip()]
    if len(seen) < servers:
        raise ConfigError(f"{servers} servers need a GPU each; this process sees {len(seen)}.")
    share = len(seen) // servers
    return [tuple(seen[i * share : (i + 1) * share]) for i in range(servers)]


def _rank(rank: int) -> int:
    """Round a rank up to one that vLLM can be prepared for."""
    if rank > RANKS[-1]:
        raise ConfigError(f"vLLM serves adapters of ranks up to {RANKS[-1]}; got {rank}.")
    return min(known for known in RANKS if known >= rank)


def _hold(port: int) -> socket.socket:
    """Take a port that the server can still listen on, and that nobody else is given meanwhile."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port))
    except OverflowError as error:
        held.close()
        raise ConfigError(f"Ports are whole numbers up to 65535; got {port}.") from error
    except OSError as error:
        held.close()
        raise ConfigError(f"Port {port} of {HOST} cannot be had: {error.strerror}.") from error
    return held
