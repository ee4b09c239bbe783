"""Two machines, each with a disk of its own, to which the data set is copied."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastdeit.data.remote.addresses import find_place
from tests.support.fetching import read_folder
from tests.support.images import write_shapes
from tests.support.launching import FLAGS
from tests.support.machines import Machine, connected_machines, launch_on

pytestmark = pytest.mark.usefixtures("kill_launched_runs")


@dataclass(frozen=True)
class WithDisk(Machine):
    """A machine that sees at `local` a folder of its own, `disk`."""

    disk: Path
    local: Path

    @property
    def inside(self) -> list[str]:
        # the machine's own table of mounts comes with `ip netns exec`
        script = 'mount --bind "$0" "$1" && shift && exec "$@"'
        return [*super().inside, "sh", "-c", script, str(self.disk), str(self.local)]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[WithDisk]]:
    (tmp_path / "local").mkdir()
    with connected_machines(2) as network:
        found = []
        for number, machine in enumerate(network.machines):
            disk = tmp_path / f"disk{number}"
            disk.mkdir()
            found.append(WithDisk(machine.name, machine.address, disk, tmp_path / "local"))
        yield found


@pytest.mark.slow
def test_each_machine_copies_to_its_own_disk(machines: list[WithDisk], tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data", train=8, val=2)
    argv = ["--data-path", str(data), *FLAGS, "--epochs", "1"]
    argv += ["--data-cache", str(tmp_path / "local")]
    launches = launch_on(machines, (1, 1), tmp_path / "run", argv, "slow:*:1")
    codes = [launch.process.wait(500) for launch in launches]
    assert codes == [0, 0], launches[0].output
    copies = [find_place(str(data), str(machine.disk)) for machine in machines]
    assert [read_folder(copy) for copy in copies] == [read_folder(data)] * 2
    assert all((copy / ".fastdeit" / "train.parquet").is_file() for copy in copies)
    assert not any((tmp_path / "local").iterdir())
