"""What a process's report shows, and to whom."""

import pytest
from pydantic import BaseModel

from cluster.adapters import AdapterKey
from cluster.members import (
    Arrival,
    Eyes,
    Ingress,
    Replica,
    Residency,
    Router,
    RouterReport,
    Twins,
    read_report,
)

OURS, THEIRS = AdapterKey("ours@1"), AdapterKey("secret@1")
BOTH = (OURS, THEIRS)
EYES = Eyes(
    "us",
    shows=lambda name: name in ("ours", "base"),
    holds=lambda key: key.name == "ours",
    counts=lambda name: name == "ours",
)

FULL = {
    "replica": Replica(
        id="r1",
        position="1-0",
        model="base",
        node="n1",
        residency=Residency(slots=BOTH, host=BOTH, slot_capacity=2, host_capacity=4),
        loading=BOTH,
        ongoing=1,
        max_ongoing=2,
        service_s=1.0,
        load_s=1.0,
        loads=3,
        running=BOTH,
        leases=2,
        kv_use=0.5,
        leaving=BOTH,
        problems={OURS: "torn", THEIRS: "secret@1 is torn"},
        trouble="left alone",
        tasks=("embed",),
    ),
    "router": Router(
        id="p1",
        position="1-0",
        router=RouterReport(
            versions={"features": "1"},
            cards=2,
            examples=3,
            landmarks=4,
            is_whole=False,
            temperature=1.0,
            threshold=0.5,
            left_out_top1=0.9,
            left_out_ece=0.1,
            scope_auroc=0.9,
            twins=(
                Twins(a="ours", b="secret", confused=0.5),
                Twins(a="ours", b="base", confused=1),
            ),
            experts=("ours", "secret", "base"),
            kernels={"wording": 0.25},
            asks_reader=0.5,
            encoder="e1",
            encoder_problem="it does not fit",
        ),
    ),
    "ingress": Ingress(
        id="i1",
        position="1-0",
        demand={"ours": 1.0, "secret": 1.0},
        times={"ours": 1.0, "secret": 1.0},
        waiting={OURS: 1, THEIRS: 1},
        tenants={"us": 1.0, "the secret tenant": 1.0},
        arrivals=(Arrival(source="s3://bucket/secret", owner="us", since=1.0),),
    ),
}


@pytest.fixture(params=FULL)
def report(request):
    return FULL[request.param]


def untouched(value: BaseModel) -> list[str]:
    """Fields, nested ones too, that have no value of their own."""
    found = []
    for name, field in type(value).model_fields.items():
        held = getattr(value, name)
        if isinstance(held, BaseModel):
            found += [f"{name}.{inner}" for inner in untouched(held)]
        elif (
            name != "kind"
            and not field.is_required()
            and held == field.get_default(call_default_factory=True)
        ):
            found.append(name)
    return found


def test_every_field_is_filled(report):
    """Or the next test would say nothing of it."""
    assert untouched(report) == []


def test_what_is_of_others_is_not_shown(report):
    shown = report.seen_by(EYES).model_dump_json()
    assert "secret" not in shown


def test_what_is_ones_own_is_shown_in_every_field(report):
    seen = report.seen_by(EYES)
    # What is on its way in is for admins alone.
    assert set(untouched(seen)) <= {"arrivals"}
    assert type(seen) is type(report)
    assert (seen.id, seen.position) == (report.id, report.position)


def test_what_a_newer_release_reports_is_shown_to_nobody_else(report):
    newer = type(report).model_validate({**report.model_dump(), "holds_also": ["secret@1"]})
    assert "holds_also" in newer.model_dump_json(), "those who see all see it"
    assert "secret" not in newer.seen_by(EYES).model_dump_json()


def test_reports_are_read_by_their_kind(report):
    assert read_report(report.model_dump_json()) == report


def test_a_kind_of_process_that_a_newer_release_has_is_left_out():
    assert read_report('{"id": "x", "kind": "auditor", "position": "1-0"}') is None


def test_a_key_has_a_name_and_a_version():
    assert (OURS.name, OURS.version) == ("ours", 1)
    assert AdapterKey.of("ours", 1) == OURS == "ours@1"
    assert {OURS: 1}["ours@1"] == 1
    seen = Replica.model_validate_json(FULL["replica"].model_dump_json())
    assert all(isinstance(key, AdapterKey) for key in (*seen.loading, *seen.problems))


def test_an_ingress_of_the_release_before_reports_no_arrivals():
    report = read_report('{"kind": "ingress", "id": "i1"}')
    assert isinstance(report, Ingress)
    assert report.arrivals == ()
