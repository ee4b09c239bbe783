"""An error that a check does not expect is its finding, of one line."""

from fastdeit.doctor.findings import Check, Finding, Target
from fastdeit.doctor.worker import run_check


def test_an_unexpected_error_is_a_finding_of_one_line() -> None:
    def run(_: Target) -> Finding:
        raise RuntimeError("the driver\n is broken")

    finding = run_check(Check("driver", run), Target())
    assert finding.status == "broken" and finding.found == "RuntimeError: the driver is broken"
    assert finding.cure
