"""Two hosts run one training as one host does, and the cable between them is cut.

They are network namespaces with addresses of their own. `make hosts` cuts the cable too, for good
and for a while, and asks real ssh servers where they are installed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import RunRanks
from facescale.cli import main
from facescale.training.metrics import read_metrics

HERE = Path(__file__).parents[2]
ALL = pytest.mark.skipif("HOSTS" not in os.environ, reason="minutes; make hosts")
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
TRAINING = [
    *("synthetic", "--data.num_classes", "50", "--data.num_images", "64", "--head.shards", "2"),
    *("--backbone.name", "y1", "--backbone.image_size", "28", "--train.batch_size", "4"),
    *("--checkpoint.every", "5", "--log_every", "1", "--device", "cpu", "--timeout_s", "10"),
]
SSHD = Path("/usr/sbin/sshd")
GIVES_UP_S = 26
"""When Linux gives a silent connection up where net.ipv4.tcp_retries2 is 6."""


class Hosts:
    """Two network namespaces, one cable; what `cluster/ssh.sh` needs to find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"facescale-{os.getpid()}-{address}" for address in ADDRESSES]
        (folder / "bin").mkdir()
        ssh = folder / "bin/ssh"
        ssh.write_text(
            '#!/bin/sh\nwhile [ "$1" = -o ]; do shift 2; done\n'
            f'exec ip netns exec "facescale-{os.getpid()}-$1" sh -c "$2"\n'
        )
        ssh.chmod(0o755)

    def lay_cable(self) -> None:
        one, other = self.names
        ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "cable", "netns", other)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
            retries = "echo 6 > /proc/sys/net/ipv4/tcp_retries2"
            ip("netns", "exec", name, "sh", "-c", retries)

    def serve_ssh(self) -> None:
        """Let `ssh` mean ssh, with servers on both hosts; all they need lies in the folder."""
        key = self.folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (self.folder / "sshd_config").write_text(
            f"HostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nPidFile none\n"
        )
        (self.folder / "ssh_config").write_text(
            f"IdentityFile {key}\nUserKnownHostsFile {self.folder}/known_hosts\n"
            "StrictHostKeyChecking accept-new\nLogLevel ERROR\n"
        )
        (self.folder / "bin/ssh").write_text(
            f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n'
        )
        # `ip netns exec` gives mounts of its own: no /run but theirs gets the folder sshd asks for.
        server = f"mount -t tmpfs tmpfs /run; mkdir /run/sshd; {SSHD} -f {self.folder}/sshd_config"
        for name in self.names:
            subprocess.run(["ip", "netns", "exec", name, "sh", "-ec", server], check=True)

    def cable(self, state: str) -> None:
        ip("-n", self.names[0], "link", "set", "cable", state)

    def start(
        self, output: Path, steps: int, wait_s: int = 60, template: str = "ssh.sh"
    ) -> "subprocess.Popen[bytes]":
        """The training by a template of `cluster/`; what all say goes to the file OUTPUT.log."""
        environment = os.environ | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOSTS": " ".join(ADDRESSES),
            "RANKS": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": ",".join(ADDRESSES),
            "SLURM_NNODES": "2",
            "OUTPUT": str(output),
            "WAIT_S": str(wait_s),
            "TORCHRUN": f"env OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=cable PYTHONPATH={HERE}/src "
            f"{sys.executable} -m torch.distributed.run",
        }
        command = [str(HERE / "cluster" / template), *TRAINING, "--train.steps", str(steps)]
        command = ["ip", "netns", "exec", self.names[0], *command]
        with output.with_name(f"{output.name}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, cwd=HERE, stdout=log, stderr=log)

    def stand_in_for_slurm(self) -> None:
        """Slurm's commands, as far as `cluster/slurm.sh` uses them; `requeued` is left by one."""
        requeue = f"touch {self.folder}/requeued"
        for name, script in {
            "scontrol": f'[ "$1" = requeue ] && {requeue} || echo "$3" | tr , "\\n"',
            "scancel": "pkill -TERM -f '[r]dzv-id=7-0'",
            "srun": f"""
                while case "$1" in -*) true ;; *) false ;; esac; do shift; done
                export SLURM_NODEID=0 SLURMD_NODENAME={ADDRESSES[0]}
                ip netns exec {self.names[0]} "$@" & first=$!
                export SLURM_NODEID=1 SLURMD_NODENAME={ADDRESSES[1]}
                ip netns exec {self.names[1]} "$@" && wait $first""",
        }.items():
            (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (self.folder / "bin" / name).chmod(0o755)

    def end(self, running: "subprocess.Popen[bytes]", output: Path, within_s: float = 120) -> int:
        try:
            return running.wait(within_s)
        except subprocess.TimeoutExpired:
            said = output.with_name(f"{output.name}.log").read_text()
            pytest.fail(f"the run has not ended within {within_s} s; it said\n{said[-4000:]}")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("two hosts on one machine need `ip` (iproute2)")
    hosts = Hosts(tmp_path)
    try:
        try:
            for name in hosts.names:
                ip("netns", "add", name)
            hosts.lay_cable()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield hosts
    finally:
        for name in hosts.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in pids.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def one_host(run_ranks: RunRanks, tmp_path: Path) -> Path:
    """The training of 100 steps by two ranks of this machine."""
    return on_one_host(run_ranks, tmp_path / "one-host", 100)


def on_one_host(run_ranks: RunRanks, output: Path, steps: int) -> Path:
    words = ["train", *TRAINING, "--train.steps", str(steps), "--output", str(output)]
    run_ranks(lambda _: main(words), 2)
    return output


def assert_same(run: Path, reference: Path) -> None:
    losses, expected = (
        [row["loss"] for row in read_metrics(path / "metrics.jsonl")] for path in (run, reference)
    )
    assert losses == expected
    name = "model.safetensors"
    assert (run / name).read_bytes() == (reference / name).read_bytes()


def wait_for_checkpoint(running: "subprocess.Popen[bytes]", output: Path) -> None:
    while not list(output.glob("checkpoints/step-*")):
        assert running.poll() is None, output.with_name(f"{output.name}.log").read_text()
        time.sleep(0.02)


def test_the_template_starts_torchrun_on_every_host(tmp_path: Path) -> None:
    """What each host is asked to run; `torchrun` and `ssh` are stand-ins."""
    (tmp_path / "ssh").write_text(
        '#!/bin/sh\nwhile [ "$1" = -o ]; do shift 2; done\nexec sh -c "$2"\n'
    )
    (tmp_path / "torchrun").write_text(
        '#!/bin/sh\n[ "$1" = --help ] && echo --shutdown-timeout && exit\n'
        f'echo "$@" >> {tmp_path}/started\n'
    )
    for name in ("ssh", "torchrun"):
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOSTS": "alpha beta",
        "RANKS": "8",
        "OUTPUT": "out",
        "WAIT_S": "60",
    }
    command = [str(HERE / "cluster/ssh.sh"), "emore_r100", "--data.path", "a folder"]
    subprocess.run(command, env=environment, check=True, timeout=60)
    lines = sorted((tmp_path / "started").read_text().splitlines())
    for line, host, first in zip(lines, ("alpha", "beta"), ("1", "0"), strict=True):
        assert f"--nnodes=2 --nproc-per-node=8 --local-addr={host} --max-restarts=3" in line
        assert "--shutdown-timeout=110 --rdzv-backend=c10d" in line
        assert "--rdzv-endpoint=alpha:29400" in line
        assert f"is_host={first},read_timeout=60,join_timeout=60" in line
        said = "-m facescale train --head.shards 8 --resume --output out emore_r100"
        assert line.endswith(f"{said} --data.path a folder")


@pytest.mark.slow
def test_two_hosts_train_as_one_does(hosts: Hosts, run_ranks: RunRanks, tmp_path: Path) -> None:
    output = tmp_path / "two-hosts"
    assert hosts.end(hosts.start(output, 3), output) == 0
    assert_same(output, on_one_host(run_ranks, tmp_path / "one-host", 3))


@ALL
def test_a_cut_for_good_ends_both_sides_and_the_same_command_goes_on(
    hosts: Hosts, one_host: Path, tmp_path: Path
) -> None:
    output, wait_s = tmp_path / "cut", 20
    running = hosts.start(output, 100, wait_s)
    wait_for_checkpoint(running, output)
    hosts.cable("down")
    began = time.monotonic()
    assert hosts.end(running, output, 10 + max(wait_s, GIVES_UP_S) + 15) != 0
    print(f"\nboth sides ended {time.monotonic() - began:.0f} s after the cut, saying")
    lines = (tmp_path / "cut.log").read_text().splitlines()
    said = [line for line in lines if "the other ranks are gone or out of reach" in line]
    print("\n".join(said))
    assert [line.split(":")[0] for line in sorted(said)] == ["facescale (rank 1)", "facescale"]
    for name in hosts.names:
        left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        assert left.stdout == ""
    hosts.cable("up")
    assert hosts.end(hosts.start(output, 100), output) == 0
    assert_same(output, one_host)


@ALL
def test_a_cut_for_a_while_needs_nobody(hosts: Hosts, one_host: Path, tmp_path: Path) -> None:
    output = tmp_path / "dip"
    running = hosts.start(output, 100)
    wait_for_checkpoint(running, output)
    hosts.cable("down")
    time.sleep(15)  # the ranks of both sides have ended after 10
    assert "gone or out of reach" in (tmp_path / "dip.log").read_text()
    hosts.cable("up")
    began = time.monotonic()
    assert hosts.end(running, output) == 0
    print(f"\nended {time.monotonic() - began:.0f} s after the cable was back")
    assert_same(output, one_host)


@ALL
@pytest.mark.skipif(not SSHD.exists(), reason="needs openssh-server")
def test_real_ssh_servers_start_it_stop_it_and_outlast_a_cut(
    hosts: Hosts, one_host: Path, tmp_path: Path
) -> None:
    hosts.serve_ssh()
    output = tmp_path / "ssh"
    running = hosts.start(output, 100)
    wait_for_checkpoint(running, output)
    running.send_signal(signal.SIGTERM)
    assert hosts.end(running, output, 60) != 0
    saved = (output / "training.log").read_text()
    assert "SIGTERM: saved at step" in saved
    running = hosts.start(output, 100)
    while (output / "training.log").read_text() == saved:
        time.sleep(0.02)
    hosts.cable("down")
    time.sleep(15)
    hosts.cable("up")
    assert hosts.end(running, output) == 0
    assert_same(output, one_host)


@ALL
def test_a_slurm_job_out_of_time_saves_and_is_queued_again(
    hosts: Hosts, one_host: Path, tmp_path: Path
) -> None:
    hosts.stand_in_for_slurm()
    output = tmp_path / "slurm"
    running = hosts.start(output, 100, template="slurm.sh")
    wait_for_checkpoint(running, output)
    running.send_signal(signal.SIGTERM)
    assert hosts.end(running, output, 60) != 0
    assert "SIGTERM: saved at step" in (output / "training.log").read_text()
    assert (tmp_path / "requeued").exists()
    assert hosts.end(hosts.start(output, 100, template="slurm.sh"), output) == 0
    assert_same(output, one_host)
