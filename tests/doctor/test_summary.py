"""The findings of all ranks, as one list."""

from fastdeit.doctor.findings import Check, Finding, absent, fail, good, warn
from fastdeit.doctor.summary import Row, count_statuses, find_worst, merge_ranks

FREE = Check("speed", lambda target: absent(""))
SAME = Check("versions", lambda target: absent(""), differs="broken")


def rows(check: Check, *findings: Finding) -> list[Row]:
    return [Row(check.name, one, rank, f"node-{rank}") for rank, one in enumerate(findings)]


def test_equal_findings_are_one_row() -> None:
    (row,) = merge_ranks(rows(SAME, good("1.0"), good("1.0")), [SAME])
    assert (row.name, row.finding) == ("versions", good("1.0"))


def test_a_good_finding_of_another_text_is_a_fault_only_where_all_must_be_equal() -> None:
    found = merge_ranks(
        rows(FREE, good("1"), good("2")) + rows(SAME, good("1"), good("2")), [FREE, SAME]
    )
    assert [row.name for row in found] == ["speed", "versions", "versions, rank 1 (node-1)"]
    assert found[-1].finding == fail("2", "make it equal to rank 0's: 1")


def test_a_warning_of_one_rank_stays_one() -> None:
    slow = warn("slow", "use another disk")
    found = merge_ranks(rows(FREE, good("fast"), good("fast"), slow), [FREE])
    assert [(row.rank, row.finding) for row in found] == [(0, good("fast")), (2, slow)]


def test_a_row_survives_its_way_through_json() -> None:
    (row,) = rows(FREE, warn("slow", "wait"))
    assert Row.read(row.describe()) == row


def test_the_worst_status_counts() -> None:
    assert find_worst(["ok", "broken", "warning"]) == "broken"
    assert find_worst(["not applicable", "ok"]) == "ok"
    assert find_worst([]) == "ok"
    assert count_statuses(rows(FREE, good(""), fail("", ""), good(""))) == "1 broken, 2 ok"
