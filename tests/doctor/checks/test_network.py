"""Checks of names, ports and variables."""

import socket

import pytest

from fastdeit.doctor.checks import network
from fastdeit.doctor.findings import Target

TARGET = Target()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "MASTER_ADDR", "TRITON_INTERPRET", "OMP_NUM_THREADS", *network._SLOW)
    for name in (*names, *network._INTERFACES):
        monkeypatch.delenv(name, raising=False)


def test_a_host_without_an_address_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")

    def resolve(name: str, port: None) -> None:
        if name != "localhost":
            raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", resolve)
    finding = network.check_names(TARGET)
    assert finding.status == "warning"
    assert "'no-such-host.invalid' has no address" in finding.found
    assert f"add {socket.gethostname()} to /etc/hosts" in finding.cure


def test_no_loopback_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_can_bind", lambda family: False)
    assert "no IPv4 loopback" in network.check_names(TARGET).found


def test_a_port_in_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        finding = network.check_port(TARGET)
    assert finding.status == "warning" and "--master_port" in finding.cure
    assert network.check_port(TARGET).status == "ok"


def test_the_port_of_a_launcher_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert network.check_port(TARGET).status == "not applicable"


@pytest.mark.parametrize("name", network._SLOW)
def test_a_variable_that_costs_speed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.check_variables(TARGET).status == "ok"
    monkeypatch.setenv(name, network._SLOW[name][0])
    finding = network.check_variables(TARGET)
    assert finding.status == "warning" and finding.cure == f"unset {name}"


@pytest.mark.parametrize(
    ("value", "status"),
    [("lo", "ok"), ("=lo", "ok"), ("^docker", "ok"), ("eth77", "warning"), ("eth77,lo", "ok")],
)
def test_a_network_interface_that_is_not_here_is_named(
    value: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
    assert network.check_variables(TARGET).status == status


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert "unset OMP_NUM_THREADS" in network.check_variables(TARGET).cure


def test_nccl_is_asked_for_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.check_nccl(TARGET).status == "not applicable"
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    assert network.check_nccl(Target(gpus=1)).status == "broken"
