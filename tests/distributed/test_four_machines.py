"""Eight ranks on four machines: the same numbers as one process, whatever happens to the machines
and the network between them.

Most ranks start without DeepSpeed's launcher, as Slurm starts them, and without their imports;
test_machines.py has the launcher, and two machines in the default run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fastdeit.commands.runs.train import train_command
from fastdeit.distributed.world import init_distributed
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, steps_done
from tests.support.machines import Machine, Network, connected_machines
from tests.support.ranks import Ranks, train_with_faults
from tests.support.run_folders import assert_same_numbers, failures_of, newest_step

TOTAL = 20  # steps
SLOW = "slow:*:200"
LIMIT_S = 15  # of a step, which is long for eight ranks on two busy cores


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with connected_machines(4) as network:
        yield network


@pytest.fixture(autouse=True)
def repaired(network: Network) -> Iterator[None]:
    """Leave no process on the machines, and the network whole."""
    yield
    for machine in network.machines:
        machine.kill()
    network.repair()


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = write_shapes(tmp_path_factory.mktemp("machines") / "data")
    sizes = ["--batch-size", "16", "--epochs", str(TOTAL), "--save-steps", "3"]
    sections = ("step", "data", "evaluation", "checkpoint")
    limits = [word for name in sections for word in (f"--{name}-limit", str(LIMIT_S))]
    return ["--data-path", str(data), *FLAGS, *sizes, *limits, "--startup-limit", "300"]


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, to which nothing happened."""
    init_distributed()
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    return folder


class Cluster:
    """A run on machines with two ranks each, started again and again in the same folder."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self._argv = [*argv, "--output-dir", str(folder)]

    def start(self, machines: Sequence[Machine], *more: str, faults: str = SLOW) -> Ranks:
        """Start two ranks on each of the machines; more: flags."""
        log = self.folder.with_name(f"log-{time.monotonic_ns()}")
        words = [*self._argv, *more]
        size = 2 * len(machines)
        return Ranks(log, train_with_faults, faults, words, world_size=size, machines=machines)

    def until_step(self, ranks: Ranks, step: int) -> None:
        """Wait until a step is in the log."""
        deadline = time.monotonic() + 200
        while steps_done(self.folder) < step:
            assert ranks.is_alive and time.monotonic() < deadline, ranks.output
            time.sleep(0.2)


@pytest.fixture
def cluster(argv: list[str], tmp_path: Path) -> Cluster:
    return Cluster(argv, tmp_path / "run")


@pytest.mark.slow
def test_eight_ranks_lose_a_machine_and_resume_as_four(
    network: Network, cluster: Cluster, whole: Path
) -> None:
    ranks = cluster.start(network.machines)
    cluster.until_step(ranks, 7)
    network.machines[3].kill()
    assert ranks.wait(60) and all(ranks.codes), ranks.output
    found = failures_of(cluster.folder)
    assert set(found) == set(range(6)) and newest_step(cluster.folder) >= 6
    assert all("onnection" in failure["error"] for failure in found.values()), found
    resumed = cluster.start(network.machines[:2], faults="none")
    assert resumed.wait() == 0, resumed.output
    assert_same_numbers(cluster.folder, whole)


Break = Callable[[Network], None]


def cut_one_off(network: Network) -> None:
    network.cut_off(network.machines[3])


def cut_first_off(network: Network) -> None:
    network.cut_off(network.machines[0])


def cut_in_halves(network: Network) -> None:
    network.cut_off(*network.machines[2:])


def lose_one_direction(network: Network) -> None:
    network.machines[3].lose_packets_to(network.machines[0])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_one_off, cut_first_off, cut_in_halves, lose_one_direction])
def test_machines_that_miss_each_other_end_and_resume(
    damage: Break, network: Network, cluster: Cluster, whole: Path
) -> None:
    ranks = cluster.start(network.machines)
    cluster.until_step(ranks, 7)  # beyond the first evaluation, which has the start's limit
    damage(network)
    began = time.monotonic()
    assert ranks.wait(LIMIT_S + 60) and all(ranks.codes), ranks.output
    assert time.monotonic() - began > LIMIT_S / 2
    found = failures_of(cluster.folder)
    assert set(found) == set(range(8)), ranks.output
    first = min(found.values(), key=lambda failure: failure["time"])
    assert first["error"].startswith(f"no progress for {LIMIT_S} s in"), first
    network.repair()
    saved = newest_step(cluster.folder)
    for machines in (network.machines[:2], network.machines[3:]):
        stopped = cluster.start(machines, "--stop-after-steps", "2", faults="none")
        assert stopped.wait() == 0, stopped.output
        saved += 2
        assert newest_step(cluster.folder) == saved
    resumed = cluster.start(network.machines, faults="none")
    assert resumed.wait() == 0, resumed.output
    assert_same_numbers(cluster.folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_one_off, cut_in_halves, lose_one_direction])
def test_short_cut_ends_nothing(
    damage: Break, network: Network, cluster: Cluster, whole: Path
) -> None:
    ranks = cluster.start(network.machines)
    cluster.until_step(ranks, 7)  # beyond the first evaluation, which has the start's limit
    damage(network)
    time.sleep(LIMIT_S / 4)
    network.repair()
    assert ranks.wait() == 0, ranks.output
    assert not failures_of(cluster.folder)
    assert_same_numbers(cluster.folder, whole)
