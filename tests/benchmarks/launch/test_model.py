"""The model of a start's time: which parts grow with the ranks, and how."""

from benchmarks.launch.model import Costs, Site, estimate

COSTS = Costs(
    torch_s=2,
    launcher_s=4,
    imports_s=4,
    files=8000,
    read_mb=100,
    message_us=10,
    peer_us=300,
    gather_us=250,
    vote_us=500,
    gathers=12,
    votes=20,
)


def test_growth_of_each_part_is_that_of_the_model() -> None:
    few, many = (estimate(ranks, COSTS, Site()) for ranks in (64, 256))
    growth = {part: many[part] / few[part] for part in few}
    assert growth["launcher"] == growth["imports"] == 1
    assert growth["files of the imports"] == growth["checkpoint"] == 4
    assert 3.8 < growth["roll call"] <= 4 and growth["votes"] < 1.5
    assert 4 < growth["gatherings"] < 4.1 and 10 < growth["gloo group"] < 17


def test_one_machine_reads_its_files_once() -> None:
    eight, four = (estimate(ranks, COSTS, Site()) for ranks in (8, 4))
    assert eight["files of the imports"] == four["files of the imports"] == 0.45
